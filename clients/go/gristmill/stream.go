package gristmill

import (
	"context"
	"errors"
	"io"
	"iter"

	"google.golang.org/grpc"

	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
)

// Stream is an answer that is being written. Range over it once, and Close it.
type Stream struct {
	// Model and Version answer.
	Model   string
	Version uint32
	// PromptTokens were read, the template's own included.
	PromptTokens uint32

	messages grpc.ServerStreamingClient[generatorv1.GenerateStreamResponse]
	cancel   context.CancelFunc
	finished *generatorv1.Finished
}

// Stream continues a text and returns as soon as the prompt is accepted; a
// refusal is its error.
func (c *Client) Stream(ctx context.Context, prompt string, opts ...GenerateOption) (*Stream, error) {
	return c.open(ctx, textPrompt(prompt), newCall(opts))
}

// StreamChat answers a conversation as Stream does.
func (c *Client) StreamChat(ctx context.Context, messages []Message, opts ...ChatOption) (*Stream, error) {
	call := newCall(opts)
	return c.open(ctx, chatPrompt(messages, call), call)
}

// Text yields the text of the first choice as it comes; the pieces join to
// exactly its text. An error ends it, and breaking out cancels the call.
func (s *Stream) Text() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for delta, err := range s.Deltas() {
			if err == nil && delta.GetIndex() != 0 {
				continue
			}
			if !yield(delta.GetText(), err) {
				return
			}
		}
	}
}

// Deltas yields what comes of every choice, with tokens and log probabilities.
// An error ends it, and breaking out cancels the call.
func (s *Stream) Deltas() iter.Seq2[*generatorv1.Delta, error] {
	return func(yield func(*generatorv1.Delta, error) bool) {
		defer s.cancel()
		for {
			message, err := s.messages.Recv()
			switch {
			case errors.Is(err, io.EOF) && s.finished != nil:
				return
			case errors.Is(err, io.EOF):
				err = brokenContract("the stream ended before its last message")
				fallthrough
			case err != nil:
				yield(nil, err)
				return
			case message.GetDelta() != nil:
				if !yield(message.GetDelta(), nil) {
					return
				}
			case message.GetFinished() != nil:
				// Read on to the end: a cancel now would count as given up.
				s.finished = message.GetFinished()
			}
		}
	}
}

// Close cancels what is left of the answer; the server stops within one step.
// It may be called at any time, more than once, and by any goroutine.
func (s *Stream) Close() { s.cancel() }

// Usage counts tokens. It is zero before the stream has ended well.
func (s *Stream) Usage() Usage { return newUsage(s.finished.GetUsage()) }

// FinishReason says why the first choice ended. It is empty before the stream
// has ended well.
func (s *Stream) FinishReason() FinishReason {
	for _, choice := range s.finished.GetChoices() {
		if choice.GetIndex() == 0 {
			return finishReason(choice)
		}
	}
	return ""
}

// Finished is the last message: how each choice ended, tool calls, timings. It
// is nil before the stream has ended well.
func (s *Stream) Finished() *generatorv1.Finished { return s.finished }

func (c *Client) open(ctx context.Context, prompt *generatorv1.Prompt, call *call) (*Stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	messages, err := c.generator.GenerateStream(ctx, &generatorv1.GenerateStreamRequest{
		Model: call.model, Prompt: prompt, Params: call.params, Priority: call.priority,
	})
	if err != nil {
		cancel()
		return nil, err
	}
	started, err := receiveStarted(messages)
	if err != nil {
		cancel()
		return nil, err
	}
	return &Stream{
		Model: started.GetModel(), Version: started.GetVersion(), PromptTokens: started.GetPromptTokens(),
		messages: messages, cancel: cancel,
	}, nil
}

func receiveStarted(messages grpc.ServerStreamingClient[generatorv1.GenerateStreamResponse]) (*generatorv1.Started, error) {
	first, err := messages.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if first.GetStarted() == nil {
		return nil, brokenContract("the first message does not say that the prompt was accepted")
	}
	return first.GetStarted(), nil
}
