package gristmill

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
)

// parrot repeats each turn, a letter a delta. "hold" stops after its first
// letter until another turn or a cancel comes, "bad" fails alone after it, and
// "drain" is finished before the stream ends.
type parrot struct {
	mu       sync.Mutex
	requests []*generatorv1.GenerateBidiRequest
}

func (p *parrot) fake() *generatorFake {
	return &generatorFake{bidi: func(stream conversationServer) error {
		requests := make(chan *generatorv1.GenerateBidiRequest)
		go func() {
			defer close(requests)
			for {
				request, err := stream.Recv()
				if err != nil {
					return
				}
				p.mu.Lock()
				p.requests = append(p.requests, request)
				p.mu.Unlock()
				select {
				case requests <- request:
				case <-stream.Context().Done():
					return
				}
			}
		}()
		return p.converse(stream, requests)
	}}
}

// heard is what has been read.
func (p *parrot) heard() []*generatorv1.GenerateBidiRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

func (p *parrot) converse(stream conversationServer, requests <-chan *generatorv1.GenerateBidiRequest) error {
	held := ""
	for request := range requests {
		cancelled := request.GetCancel().GetId()
		if turn := request.GetTurn(); held != "" && (turn != nil || cancelled == "" || cancelled == held) {
			stream.Send(turnFinished(held, generatorv1.FinishReason_FINISH_REASON_CANCELLED))
			held = ""
		}
		turn := request.GetTurn()
		if turn == nil {
			continue
		}
		stream.Send(&generatorv1.GenerateBidiResponse{TurnId: turn.GetId(), Event: &generatorv1.GenerateBidiResponse_Started{
			Started: &generatorv1.Started{Model: "parrot", Version: 3},
		}})
		text := turn.GetMessages()[0].GetContent()
		said := text
		if text == "hold" || text == "bad" {
			said = text[:1]
		}
		for _, letter := range said {
			stream.Send(&generatorv1.GenerateBidiResponse{TurnId: turn.GetId(), Event: &generatorv1.GenerateBidiResponse_Delta{
				Delta: &generatorv1.Delta{Text: string(letter)},
			}})
		}
		switch text {
		case "hold":
			held = turn.GetId()
		case "bad":
			st := status.Convert(refusal(nil, codes.Internal, "BACKEND_FAILED"))
			stream.Send(&generatorv1.GenerateBidiResponse{TurnId: turn.GetId(), Event: &generatorv1.GenerateBidiResponse_Error{Error: st.Proto()}})
		default:
			stream.Send(turnFinished(turn.GetId(), generatorv1.FinishReason_FINISH_REASON_LENGTH))
		}
		if text == "drain" {
			return refusal(stream.Context(), codes.Unavailable, "DRAINING")
		}
	}
	return stream.Context().Err()
}

func turnFinished(id string, reason generatorv1.FinishReason) *generatorv1.GenerateBidiResponse {
	return &generatorv1.GenerateBidiResponse{TurnId: id, Event: &generatorv1.GenerateBidiResponse_Finished{Finished: &generatorv1.Finished{
		Choices: []*generatorv1.Choice{{FinishReason: reason}}, Usage: &generatorv1.Usage{PromptTokens: 5, CompletionTokens: 2},
	}}}
}

func converseWith(t *testing.T, fake *generatorFake, ctx context.Context, opts ...ConverseOption) *Conversation {
	t.Helper()
	conversation, err := serve(t, nil, fake, nil).Converse(ctx, "models/parrot", opts...)
	must(t, err)
	t.Cleanup(conversation.Close)
	return conversation
}

func say(t *testing.T, conversation *Conversation, text string, opts ...SayOption) *Answer {
	t.Helper()
	answer, err := conversation.Say(text, opts...)
	must(t, err)
	return answer
}

// heardFirst reads the first piece and leaves the rest.
func heardFirst(t *testing.T, answer *Answer) string {
	t.Helper()
	delta, err := answer.next()
	must(t, err)
	return delta.GetText()
}

func textOf(answer *Answer) (text string, err error) {
	for piece, err := range answer.Text() {
		if err != nil {
			return text, err
		}
		text += piece
	}
	return text, nil
}
