package gristmill

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
)

// FinishReason is why an answer ended. Empty: it has not.
type FinishReason string

// The reasons.
const (
	FinishStop      FinishReason = "stop"
	FinishLength    FinishReason = "length"
	FinishToolCalls FinishReason = "tool_calls"
	FinishCancelled FinishReason = "cancelled"
)

// Usage counts tokens.
type Usage struct {
	// PromptTokens were read, the template's own included; the work of
	// CachedTokens of them was found in the prefix cache.
	PromptTokens, CachedTokens uint32
	// CompletionTokens were written, over all choices.
	CompletionTokens uint32
}

// Completion is the answer to one prompt.
type Completion struct {
	// Text, FinishReason and ToolCalls are those of the first choice.
	Text         string
	FinishReason FinishReason
	ToolCalls    []*generatorv1.ToolCall
	// Choices are all answers, with their tokens and log probabilities.
	Choices []*generatorv1.Choice
	// Usage counts tokens over all choices.
	Usage Usage
	// Timings says where the time went.
	Timings *generatorv1.Timings
	// Model and Version answered.
	Model   string
	Version uint32
}

// Generate continues a text, without a chat template.
func (c *Client) Generate(ctx context.Context, prompt string, opts ...GenerateOption) (*Completion, error) {
	return c.generate(ctx, textPrompt(prompt), newCall(opts))
}

// Chat answers a conversation, rendered with the model's own chat template.
func (c *Client) Chat(ctx context.Context, messages []Message, opts ...ChatOption) (*Completion, error) {
	call := newCall(opts)
	return c.generate(ctx, chatPrompt(messages, call), call)
}

func (c *Client) generate(ctx context.Context, prompt *generatorv1.Prompt, call *call) (*Completion, error) {
	var trailer metadata.MD
	response, err := c.generator.Generate(ctx, &generatorv1.GenerateRequest{
		Model: call.model, Prompts: []*generatorv1.Prompt{prompt}, Params: call.params, Priority: call.priority,
	}, grpc.Trailer(&trailer))
	if err != nil {
		return nil, err
	}
	if got := len(response.GetResults()); got != 1 {
		return nil, brokenContract("%d results for 1 prompt", got)
	}
	result := response.GetResults()[0]
	if result.GetError() != nil { // the only prompt failed alone: to the caller, the call did
		return nil, newError(status.FromProto(result.GetError()), requestID(trailer))
	}
	if len(result.GetGeneration().GetChoices()) == 0 {
		return nil, brokenContract("the prompt has no answer")
	}
	return newCompletion(result.GetGeneration(), response), nil
}

func newCompletion(g *generatorv1.Generation, response *generatorv1.GenerateResponse) *Completion {
	first := g.GetChoices()[0]
	return &Completion{
		Text:         first.GetText(),
		FinishReason: finishReason(first),
		ToolCalls:    first.GetToolCalls(),
		Choices:      g.GetChoices(),
		Usage:        newUsage(g.GetUsage()),
		Timings:      g.GetTimings(),
		Model:        response.GetModel(),
		Version:      response.GetVersion(),
	}
}

func newUsage(u *generatorv1.Usage) Usage {
	return Usage{u.GetPromptTokens(), u.GetCachedTokens(), u.GetCompletionTokens()}
}

func finishReason(choice *generatorv1.Choice) FinishReason {
	if choice.GetFinishReason() == generatorv1.FinishReason_FINISH_REASON_UNSPECIFIED {
		return ""
	}
	return FinishReason(strings.ToLower(strings.TrimPrefix(choice.GetFinishReason().String(), "FINISH_REASON_")))
}
