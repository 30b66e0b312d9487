package gristmill

import (
	"iter"

	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
)

// Answer is the answer to a turn of a [Conversation], as it comes. Range over it
// once.
type Answer struct {
	// ID is that of the turn.
	ID string

	conversation *Conversation
	stopped      bool // by whoever sends

	deltas   []*generatorv1.Delta // received, and not yielded yet
	started  *generatorv1.Started
	finished *generatorv1.Finished
	failure  error
}

// Text yields the text as it comes. An error ends it: of this turn alone, or of
// the whole conversation. Breaking out ends the answer, and the conversation goes
// on.
func (a *Answer) Text() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for delta, err := range a.Deltas() {
			if !yield(delta.GetText(), err) {
				return
			}
		}
	}
}

// Deltas yields what comes, with tokens and log probabilities, otherwise as Text.
func (a *Answer) Deltas() iter.Seq2[*generatorv1.Delta, error] {
	return func(yield func(*generatorv1.Delta, error) bool) {
		defer a.Close()
		for {
			delta, err := a.next()
			if (delta != nil || err != nil) && !yield(delta, err) || delta == nil {
				return
			}
		}
	}
}

// Close ends this answer alone; what it had said stays in the history. It may be
// called at any time, more than once, and by any goroutine.
func (a *Answer) Close() {
	a.conversation.sending.Lock()
	defer a.conversation.sending.Unlock()
	a.conversation.stop(a)
}

// Started says which model answers. It is nil before the turn was accepted.
func (a *Answer) Started() *generatorv1.Started {
	a.conversation.mu.Lock()
	defer a.conversation.mu.Unlock()
	return a.started
}

// Finished is the last message: how the answer ended, tool calls, timings. It is
// nil before the answer has ended well.
func (a *Answer) Finished() *generatorv1.Finished {
	a.conversation.mu.Lock()
	defer a.conversation.mu.Unlock()
	return a.finished
}

// Usage counts tokens. It is zero before the answer has ended well.
func (a *Answer) Usage() Usage { return newUsage(a.Finished().GetUsage()) }

// FinishReason says why the answer ended, [FinishCancelled] after a cancel or
// another turn. It is empty before the answer has ended well.
func (a *Answer) FinishReason() FinishReason {
	if choices := a.Finished().GetChoices(); len(choices) > 0 {
		return finishReason(choices[0])
	}
	return ""
}

// next is what comes next; nil and nil at the end.
func (a *Answer) next() (*generatorv1.Delta, error) {
	v := a.conversation
	v.receive(func() bool { return len(a.deltas) > 0 || a.isOver() })
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(a.deltas) == 0 {
		return nil, a.failure
	}
	first := a.deltas[0]
	a.deltas = a.deltas[1:]
	return first, nil
}

func (a *Answer) isOver() bool { return a.finished != nil || a.failure != nil }
