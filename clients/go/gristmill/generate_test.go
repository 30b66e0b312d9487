package gristmill

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

func started() *generatorv1.GenerateStreamResponse {
	return &generatorv1.GenerateStreamResponse{Event: &generatorv1.GenerateStreamResponse_Started{
		Started: &generatorv1.Started{Model: "smollm2", Version: 2, PromptTokens: 5},
	}}
}

func delta(index uint32, text string) *generatorv1.GenerateStreamResponse {
	return &generatorv1.GenerateStreamResponse{Event: &generatorv1.GenerateStreamResponse_Delta{
		Delta: &generatorv1.Delta{Index: index, Text: text},
	}}
}

func finished() *generatorv1.GenerateStreamResponse {
	return &generatorv1.GenerateStreamResponse{Event: &generatorv1.GenerateStreamResponse_Finished{Finished: &generatorv1.Finished{
		Choices: []*generatorv1.Choice{{Index: 0, FinishReason: generatorv1.FinishReason_FINISH_REASON_LENGTH}},
		Usage:   &generatorv1.Usage{PromptTokens: 5, CachedTokens: 1, CompletionTokens: 2},
	}}}
}

func sending(messages ...*generatorv1.GenerateStreamResponse) *generatorFake {
	return &generatorFake{stream: func(_ *generatorv1.GenerateStreamRequest, out grpc.ServerStreamingServer[generatorv1.GenerateStreamResponse]) error {
		for _, message := range messages {
			out.Send(message)
		}
		return nil
	}}
}

func generating(got **generatorv1.GenerateRequest, result *generatorv1.PromptResult) *generatorFake {
	return &generatorFake{generate: func(ctx context.Context, r *generatorv1.GenerateRequest) (*generatorv1.GenerateResponse, error) {
		*got = r
		return &generatorv1.GenerateResponse{Results: []*generatorv1.PromptResult{result}, Model: "smollm2", Version: 2}, nil
	}}
}

func generation() *generatorv1.PromptResult {
	return &generatorv1.PromptResult{Outcome: &generatorv1.PromptResult_Generation{Generation: &generatorv1.Generation{
		Choices: []*generatorv1.Choice{{Text: "hi", FinishReason: generatorv1.FinishReason_FINISH_REASON_TOOL_CALLS}},
		Usage:   &generatorv1.Usage{CompletionTokens: 1},
	}}}
}

func TestChatSendsMessagesToolsAndParams(t *testing.T) {
	var got *generatorv1.GenerateRequest
	client := serve(t, nil, generating(&got, generation()), nil)
	tool := &generatorv1.Tool{Name: "weather"}
	completion, err := client.Chat(t.Context(), []Message{System("Be brief."), User("Hi")},
		WithModel("smollm2"), WithVersion(2), WithTools(tool), WithMaxTokens(8), WithTemperature(0), WithTopP(0.5), WithSeed(7), WithStop("\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &generatorv1.GenerateRequest{
		Model: &registryv1.ModelRef{Model: "smollm2", Selector: &registryv1.ModelRef_Version{Version: 2}},
		Prompts: []*generatorv1.Prompt{{Content: &generatorv1.Prompt_Chat{Chat: &generatorv1.ChatPrompt{
			Messages: []*generatorv1.ChatMessage{
				{Role: generatorv1.Role_ROLE_SYSTEM, Content: "Be brief."},
				{Role: generatorv1.Role_ROLE_USER, Content: "Hi"},
			},
			Tools: []*generatorv1.Tool{tool},
		}}}},
		Params: &generatorv1.SamplingParams{
			MaxTokens: proto.Uint32(8), Temperature: proto.Float32(0), TopP: proto.Float32(0.5), Seed: proto.Uint64(7), Stop: []string{"\n"},
		},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if completion.Text != "hi" || completion.FinishReason != FinishToolCalls || completion.Usage.CompletionTokens != 1 || completion.Version != 2 {
		t.Errorf("got %+v", completion)
	}
}

func TestPromptThatFailsAloneIsTheErrorOfTheCall(t *testing.T) {
	var got *generatorv1.GenerateRequest
	st := status.Convert(refusal(nil, codes.InvalidArgument, "UNSUPPORTED_FIELD"))
	client := serve(t, nil, generating(&got, &generatorv1.PromptResult{Outcome: &generatorv1.PromptResult_Error{Error: st.Proto()}}), nil)
	_, err := client.Generate(t.Context(), "Hi", WithJSONSchema("{}"))
	if asTyped(t, err).Reason != "UNSUPPORTED_FIELD" {
		t.Errorf("got %v", err)
	}
	if got.GetPrompts()[0].GetText().GetText() != "Hi" || got.GetParams().GetConstraint().GetJsonSchema() != "{}" {
		t.Errorf("got %v", got)
	}
}

func TestStreamJoinsToTheTextAndTellsHowItEnded(t *testing.T) {
	client := serve(t, nil, sending(started(), delta(0, "Once"), delta(1, "Two"), delta(0, " upon"), finished()), nil)
	stream, err := client.StreamChat(t.Context(), []Message{User("Tell")})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if stream.Model != "smollm2" || stream.Version != 2 || stream.PromptTokens != 5 {
		t.Errorf("got %+v", stream)
	}
	var text strings.Builder
	for piece, err := range stream.Text() {
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString(piece)
	}
	if text.String() != "Once upon" || stream.FinishReason() != FinishLength || stream.Usage() != (Usage{5, 1, 2}) {
		t.Errorf("got %q, %q, %v", text.String(), stream.FinishReason(), stream.Usage())
	}
	for piece, err := range stream.Text() {
		t.Errorf("a second range gives %q, %v", piece, err)
	}
}

func TestStreamThatBreaksOffIsAnError(t *testing.T) {
	client := serve(t, nil, sending(started(), delta(0, "Once")), nil)
	stream, err := client.Stream(t.Context(), "Tell")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var last error
	for _, err := range stream.Deltas() {
		last = err
	}
	if last == nil || asTyped(t, last).Code != codes.Internal {
		t.Errorf("got %v", last)
	}
}

func TestStreamThatDoesNotStartIsAnError(t *testing.T) {
	for name, fake := range map[string]*generatorFake{"empty": sending(), "delta first": sending(delta(0, "Once"))} {
		client := serve(t, nil, fake, nil)
		if _, err := client.Stream(t.Context(), "Tell"); err == nil || asTyped(t, err).Code != codes.Internal {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestGeneratorHasItsOwnDefaultDeadline(t *testing.T) {
	left := make(chan time.Duration, 1)
	fake := &generatorFake{stream: func(_ *generatorv1.GenerateStreamRequest, out grpc.ServerStreamingServer[generatorv1.GenerateStreamResponse]) error {
		deadline, _ := out.Context().Deadline()
		left <- time.Until(deadline)
		return out.Send(started())
	}}
	client := serve(t, nil, fake, nil, WithTimeout(time.Second))
	if _, err := client.Stream(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := <-left; got > 120*time.Second || got < 115*time.Second {
		t.Errorf("the default is %v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if _, err := client.Stream(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if got := <-left; got < 59*time.Minute {
		t.Errorf("the caller's deadline was replaced: %v", got)
	}
}
