package gristmill

import (
	"context"
	"errors"
	"testing"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

func packed(t *testing.T, message proto.Message) *anypb.Any {
	t.Helper()
	found, err := anypb.New(message)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// underWay is an evaluation, half done.
func underWay(t *testing.T) *longrunningpb.Operation {
	return &longrunningpb.Operation{Name: "operations/evaluate.1", Metadata: packed(t, &registryv1.OperationMetadata{
		Kind: "evaluate", Subject: "models/m/versions/3", Progress: 0.5, Message: "12 examples",
	})}
}

func ended(t *testing.T, result proto.Message) *longrunningpb.Operation {
	operation := underWay(t)
	operation.Done, operation.Result = true, &longrunningpb.Operation_Response{Response: packed(t, result)}
	return operation
}

func TestAnEvaluationIsWaitedForThroughARestart(t *testing.T) {
	asked := 0
	models, s := serveScript(t, answers{
		"ListModelVersions":    always(&registryv1.ListModelVersionsResponse{Versions: []*registryv1.ModelVersion{{Name: "models/m/versions/3"}}}),
		"EvaluateModelVersion": always(&registryv1.EvaluateModelVersionResponse{Operation: underWay(t)}),
		"WaitOperation": func(context.Context, proto.Message) (proto.Message, error) {
			asked++
			switch asked {
			case 1:
				return underWay(t), nil
			case 2:
				return nil, status.Error(codes.Unavailable, "restarting")
			}
			return ended(t, &registryv1.ModelVersion{Metrics: map[string]float64{"new_f1": 0.9}}), nil
		},
	})
	operation, err := models.Evaluate(t.Context(), "m", 0, "reviews", 2, WithMetricPrefix("new_"))
	if err != nil || operation.Kind != "evaluate" || operation.Subject != "models/m/versions/3" || operation.Progress != 0.5 || operation.Message != "12 examples" {
		t.Fatalf("got %+v, %v", operation, err)
	}
	sent := last[*registryv1.EvaluateModelVersionRequest](t, s, "EvaluateModelVersion")
	if sent.GetName() != "models/m/versions/3" || sent.GetDataset() != "models/reviews/versions/2" || sent.GetMetricPrefix() != "new_" {
		t.Errorf("sent %v", sent)
	}
	var heard []float64
	if err := operation.Wait(t.Context(), func(o *Operation) { heard = append(heard, o.Progress) }); err != nil {
		t.Fatal(err)
	}
	if len(heard) != 2 || heard[1] != 1 || operation.Version.GetMetrics()["new_f1"] != 0.9 || operation.Profile != nil {
		t.Errorf("heard %v, got %+v", heard, operation)
	}
}

func TestWaitGivesTheErrorThatTheWorkEndedWith(t *testing.T) {
	failed := underWay(t)
	failed.Done = true
	failed.Result = &longrunningpb.Operation_Error{Error: status.New(codes.Canceled, "the operation was cancelled").Proto()}
	models, s := serveScript(t, answers{
		"GetOperation":    always(underWay(t)),
		"CancelOperation": always(nil),
		"DeleteOperation": always(nil),
		"WaitOperation":   always(failed),
	})
	operation, err := models.Operation(t.Context(), "evaluate.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(operation.Refresh(t.Context()), operation.Cancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	if name := last[*longrunningpb.CancelOperationRequest](t, s, "CancelOperation").GetName(); name != "operations/evaluate.1" {
		t.Errorf("cancelled %q", name)
	}
	if err := operation.Wait(t.Context()); !errors.Is(err, context.Canceled) || !operation.Done {
		t.Errorf("got %v", err)
	}
	if err := operation.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWaitEndsWithItsContextAndTheWorkGoesOn(t *testing.T) {
	models, _ := serveScript(t, answers{
		"GetOperation": always(underWay(t)),
		"WaitOperation": func(ctx context.Context, _ proto.Message) (proto.Message, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	})
	operation, err := models.Operation(t.Context(), "operations/evaluate.1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := operation.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) || operation.Done {
		t.Errorf("got %v", err)
	}
}

func TestWaitDoesNotTryAgainWhatWillNotPass(t *testing.T) {
	models, s := serveScript(t, answers{
		"GetOperation": always(underWay(t)),
		"WaitOperation": func(ctx context.Context, _ proto.Message) (proto.Message, error) {
			return nil, refusal(nil, codes.NotFound, "OPERATION_NOT_FOUND")
		},
	})
	operation, _ := models.Operation(t.Context(), "evaluate.1")
	if err := operation.Wait(t.Context()); !IsNotFound(err) || len(s.requests["WaitOperation"]) != 1 {
		t.Errorf("got %v", err)
	}
}

func TestConversionsProfilesAndImports(t *testing.T) {
	profile := &registryv1.ModelVersionProfile{Fingerprint: "cpu"}
	models, s := serveScript(t, answers{
		"ConvertModelVersion":    always(&registryv1.ConvertModelVersionResponse{Operation: underWay(t)}),
		"ProfileModelVersion":    always(&registryv1.ProfileModelVersionResponse{Operation: ended(t, profile)}),
		"GetModelVersionProfile": always(&registryv1.GetModelVersionProfileResponse{Profiles: []*registryv1.ModelVersionProfile{profile}}),
		"ImportModel":            always(&registryv1.ImportModelResponse{Operation: underWay(t)}),
		"ListSources":            always(&registryv1.ListSourcesResponse{Sources: []*registryv1.Source{{Source: "hub"}}}),
		"ListOperations":         always(&longrunningpb.ListOperationsResponse{Operations: []*longrunningpb.Operation{{Name: "operations/finalize.m.1", Done: true}}}),
	})
	if _, err := models.Convert(t.Context(), "m", 1, registryv1.Conversion_CONVERSION_ONNX, WithMaxDifference(0)); err != nil {
		t.Fatal(err)
	}
	if sent := last[*registryv1.ConvertModelVersionRequest](t, s, "ConvertModelVersion"); sent.MaxDifference == nil || sent.GetConversion() != registryv1.Conversion_CONVERSION_ONNX {
		t.Errorf("sent %v", sent)
	}
	operation, err := models.Profile(t.Context(), "m", 1, WithBatchSizes(1, 8), WithLengths(16))
	if err != nil || operation.Wait(t.Context()) != nil || operation.Profile.GetFingerprint() != "cpu" {
		t.Errorf("got %+v, %v", operation, err)
	}
	if sent := last[*registryv1.ProfileModelVersionRequest](t, s, "ProfileModelVersion"); len(sent.GetBatchSizes()) != 2 || len(sent.GetLengths()) != 1 {
		t.Errorf("sent %v", sent)
	}
	if curves, err := models.Profiles(t.Context(), "m", 1); err != nil || len(curves) != 1 {
		t.Errorf("got %v, %v", curves, err)
	}
	if _, err := models.Import(t.Context(), "m", "hub", "a/b", "c"); err != nil {
		t.Error(err)
	}
	if sent := last[*registryv1.ImportModelRequest](t, s, "ImportModel"); sent.GetParent() != "models/m" || sent.GetPath() != "a/b" || sent.GetRevision() != "c" {
		t.Errorf("sent %v", sent)
	}
	if sources, err := models.Sources(t.Context()); err != nil || sources[0].GetSource() != "hub" {
		t.Errorf("got %v, %v", sources, err)
	}
	found, err := models.ListOperations(t.Context(), WithFilter("done = true"))
	if err != nil || found[0].Kind != "finalize" || found[0].Err == nil {
		t.Errorf("got %+v, %v", found, err)
	}
	if filter := last[*longrunningpb.ListOperationsRequest](t, s, "ListOperations").GetFilter(); filter != "done = true" {
		t.Errorf("sent %q", filter)
	}
}

func TestAModelWithNoReadyVersionCannotBeWorkedOn(t *testing.T) {
	models, s := serveScript(t, answers{"ListModelVersions": always(nil)})
	_, err := models.Profile(t.Context(), "m", 0)
	if !hasCode(err, codes.FailedPrecondition) {
		t.Errorf("got %v", err)
	}
	if filter := last[*registryv1.ListModelVersionsRequest](t, s, "ListModelVersions").GetFilter(); filter != "state = READY" {
		t.Errorf("sent %q", filter)
	}
}
