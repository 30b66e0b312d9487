package gristmill

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

func answer(label string, score float32) *classifierv1.ItemResult {
	return &classifierv1.ItemResult{Outcome: &classifierv1.ItemResult_Classification{Classification: &classifierv1.Classification{
		Labels: []*classifierv1.LabelScore{{Label: label, Index: 1, Score: score}, {Label: "other", Score: 1 - score}},
		Tokens: 4,
	}}}
}

func itemFailure() *classifierv1.ItemResult {
	st := status.Convert(refusal(nil, codes.InvalidArgument, "INVALID_FIELD"))
	return &classifierv1.ItemResult{Outcome: &classifierv1.ItemResult_Error{Error: st.Proto()}}
}

func TestClassifySendsItemsAndOptions(t *testing.T) {
	var got *classifierv1.ClassifyRequest
	client := serve(t, &classifierFake{classify: func(_ context.Context, r *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		got = r
		return &classifierv1.ClassifyResponse{Results: []*classifierv1.ItemResult{answer("a", 1), answer("b", 1), answer("c", 1)}}, nil
	}}, nil, nil)
	items := []Item{Text("one"), TextPair("two", "three"), Features(1, 2)}
	_, err := client.Classify(t.Context(), items,
		WithModel("models/sentiment"), WithAlias("candidate"), WithPriority(2), WithTopK(3), WithThreshold(0.5),
		WithProbabilities(), WithNoCache(), WithTruncation(classifierv1.Truncation_TRUNCATION_REFUSE))
	if err != nil {
		t.Fatal(err)
	}
	want := &classifierv1.ClassifyRequest{
		Model: &registryv1.ModelRef{Model: "sentiment", Selector: &registryv1.ModelRef_Alias{Alias: "candidate"}},
		Items: []*classifierv1.Item{
			{Content: &classifierv1.Item_Text{Text: &classifierv1.Text{Text: "one"}}},
			{Content: &classifierv1.Item_TextPair{TextPair: &classifierv1.TextPair{First: "two", Second: "three"}}},
			{Content: &classifierv1.Item_FloatFeatures{FloatFeatures: &classifierv1.FloatFeatures{Values: []float32{1, 2}}}},
		},
		Options: &classifierv1.ClassifyOptions{
			TopK: proto.Uint32(3), Threshold: proto.Float32(0.5), ReturnProbabilities: true, NoCache: true,
			Truncation: classifierv1.Truncation_TRUNCATION_REFUSE,
		},
		Priority: 2,
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestClassifyWithoutOptionsLeavesThemToTheServer(t *testing.T) {
	client := serve(t, &classifierFake{classify: func(ctx context.Context, r *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		if r.Model != nil || r.Options != nil || r.Priority != 0 {
			t.Errorf("got %v", r)
		}
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 30*time.Second || time.Until(deadline) < 25*time.Second {
			t.Errorf("the default deadline is %v", time.Until(deadline))
		}
		return &classifierv1.ClassifyResponse{Results: []*classifierv1.ItemResult{answer("a", 1)}}, nil
	}}, nil, nil)
	if _, err := client.Classify(t.Context(), Texts("one")); err != nil {
		t.Fatal(err)
	}
}

func TestItemThatFailsAloneLeavesItsNeighbours(t *testing.T) {
	client := serve(t, &classifierFake{classify: func(ctx context.Context, _ *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		grpc.SetTrailer(ctx, metadata.Pairs("x-request-id", "r-3"))
		return &classifierv1.ClassifyResponse{
			Results: []*classifierv1.ItemResult{answer("positive", 0.9), itemFailure(), {}}, Model: "sentiment", Version: 3,
		}, nil
	}}, nil, nil)
	predictions, err := client.Classify(t.Context(), Texts("a", "b", "c"))
	if err != nil {
		t.Fatal(err)
	}
	good, bad, empty := predictions[0], predictions[1], predictions[2]
	if good.Err != nil || good.Label != "positive" || good.Score != 0.9 || len(good.Labels) != 2 || good.Tokens != 4 {
		t.Errorf("got %+v", good)
	}
	if good.Model != "sentiment" || good.Version != 3 {
		t.Errorf("got %+v", good)
	}
	if e := asTyped(t, bad.Err); e.Reason != "INVALID_FIELD" || e.RequestID != "r-3" || bad.Label != "" {
		t.Errorf("got %+v", bad)
	}
	if asTyped(t, empty.Err).Code != codes.Internal {
		t.Errorf("got %+v", empty)
	}
}

func TestResultsThatDoNotMatchTheItemsAreAnError(t *testing.T) {
	client := serve(t, &classifierFake{classify: func(context.Context, *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		return &classifierv1.ClassifyResponse{}, nil
	}}, nil, nil)
	if _, err := client.Classify(t.Context(), Texts("a")); asTyped(t, err).Code != codes.Internal {
		t.Errorf("got %v", err)
	}
}

func TestClassifyStreamYieldsResultsAsTheyCome(t *testing.T) {
	client := serve(t, &classifierFake{stream: func(r *classifierv1.ClassifyStreamRequest, out grpc.ServerStreamingServer[classifierv1.ClassifyStreamResponse]) error {
		out.Send(&classifierv1.ClassifyStreamResponse{Index: 1, Result: answer("b", 1), Model: "m", Version: 1})
		out.Send(&classifierv1.ClassifyStreamResponse{Index: 0, Result: itemFailure()})
		return nil
	}}, nil, nil)
	var indices []int
	for p, err := range client.ClassifyStream(t.Context(), Texts("a", "b")) {
		if err != nil {
			t.Fatal(err)
		}
		indices = append(indices, p.Index)
		if (p.Index == 0) != IsInvalid(p.Err) {
			t.Errorf("got %+v", p)
		}
	}
	if len(indices) != 2 || indices[0] != 1 || indices[1] != 0 {
		t.Errorf("got %v", indices)
	}
}

func TestClassifyStreamEndsWithTheErrorOfTheStream(t *testing.T) {
	client := serve(t, &classifierFake{stream: func(_ *classifierv1.ClassifyStreamRequest, out grpc.ServerStreamingServer[classifierv1.ClassifyStreamResponse]) error {
		out.Send(&classifierv1.ClassifyStreamResponse{Result: answer("a", 1)})
		return refusal(nil, codes.DeadlineExceeded, "DEADLINE_EXPIRED")
	}}, nil, nil)
	var last error
	rounds := 0
	for _, err := range client.ClassifyStream(t.Context(), Texts("a", "b")) {
		last, rounds = err, rounds+1
	}
	if rounds != 2 || !IsDeadlineExceeded(last) {
		t.Errorf("got %d rounds, %v", rounds, last)
	}
}
