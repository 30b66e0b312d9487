package gristmill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
)

const (
	// maxUnderWay bounds the turns whose end nobody has read: of any number of
	// them all but the last were cancelled.
	maxUnderWay = 64
	// The contract's bound, a breach of which would end the conversation.
	maxTurnMessages = 128
)

// Conversation takes turns and gives answers, one at a time; the server keeps
// the history. Any number of goroutines may say, cancel and range, each over its
// own answer. Close it.
type Conversation struct {
	messages grpc.BidiStreamingClient[generatorv1.GenerateBidiRequest, generatorv1.GenerateBidiResponse]
	cancel   context.CancelFunc
	opts     []ConverseOption
	timeout  time.Duration // of turns; 0: the server's default

	sending sync.Mutex // gRPC sends one message at a time
	last    *Answer

	mu       sync.Mutex // of what follows, and of what the answers hold
	changed  sync.Cond
	reading  bool               // by one goroutine, for all that wait
	underWay map[string]*Answer // by the ids of their turns
	number   uint64
	failure  error // why nothing more comes
}

// WithHistory says what was said before, oldest first, at most 1,024 messages.
func WithHistory(messages ...Message) ConverseOption {
	return converseOption{func(c *call) { c.history = messages }}
}

// WithTurnTimeout sets the time that an answer has from its turn's arrival, 1 ms
// to 1 hour. Without it: the client's own, see [WithGenerateTimeout].
func WithTurnTimeout(timeout time.Duration) TurnOption {
	return turnOption{func(c *call) { c.turnTimeout = timeout }}
}

// WithTurnID names a turn, in at most 128 characters. Without it: a new number.
func WithTurnID(id string) SayOption {
	return sayOption{func(c *call) { c.turnID = id }}
}

// Converse opens a conversation that lasts as long as its context. An empty model
// is the only one served. The options hold for turns that say nothing else. What
// ends the conversation, a refusal of its beginning too, comes from the answers
// under way and from what is said next.
func (c *Client) Converse(ctx context.Context, model string, opts ...ConverseOption) (*Conversation, error) {
	call := newCall(opts)
	timeout, err := call.turnTime(min(c.generateTimeout, maxItemTimeout))
	if err != nil {
		return nil, err
	}
	if model != "" {
		call.ref().Model = modelID(model)
	}
	ctx, cancel := context.WithCancel(ctx)
	messages, err := c.generator.GenerateBidi(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	v := &Conversation{messages: messages, cancel: cancel, opts: opts, timeout: timeout, underWay: map[string]*Answer{}}
	v.changed.L = &v.mu
	err = messages.Send(&generatorv1.GenerateBidiRequest{Message: &generatorv1.GenerateBidiRequest_Open{
		Open: &generatorv1.OpenConversation{
			Model: call.model, History: chatMessages(call.history), Params: call.params, Tools: call.tools,
		},
	}})
	if err != nil && !errors.Is(err, io.EOF) {
		cancel()
		return nil, err
	}
	return v, nil
}

// Say sends what a user says, and gives the answer to range over. It ends the
// answer in hand, whose reason is then [FinishCancelled]; what that had said
// stays in the history. The options hold for this turn only. An error says why
// nothing was sent; a turn that fails alone says so in its answer, and the
// conversation goes on without it.
func (v *Conversation) Say(text string, opts ...SayOption) (*Answer, error) {
	return v.SayMessages([]Message{User(text)}, opts...)
}

// SayMessages sends 1 to 128 messages as one turn, otherwise as Say.
func (v *Conversation) SayMessages(messages []Message, opts ...SayOption) (*Answer, error) {
	turn, err := v.turn(messages, opts)
	if err != nil {
		return nil, err
	}
	v.sending.Lock()
	defer v.sending.Unlock()
	answer, err := v.begin(turn)
	if err != nil {
		return nil, err
	}
	err = v.messages.Send(&generatorv1.GenerateBidiRequest{Message: &generatorv1.GenerateBidiRequest_Turn{Turn: turn}})
	if err != nil {
		return nil, v.notSent(answer, err)
	}
	v.last = answer
	return answer, nil
}

// Cancel ends the answer in hand with the reason [FinishCancelled]; what it had
// said stays in the history. Without one it does nothing.
func (v *Conversation) Cancel() {
	v.sending.Lock()
	defer v.sending.Unlock()
	v.stop(v.last)
}

// Close cancels what is still under way. It may be called at any time, more than
// once, and by any goroutine.
func (v *Conversation) Close() { v.cancel() }

// turn is the message; its parameters replace the conversation's, so they have
// both.
func (v *Conversation) turn(messages []Message, opts []SayOption) (*generatorv1.Turn, error) {
	if len(messages) < 1 || len(messages) > maxTurnMessages {
		return nil, fmt.Errorf("gristmill: a turn has 1 to %d messages, not %d", maxTurnMessages, len(messages))
	}
	own, merged := newCall(opts), newCall(v.opts)
	for _, opt := range opts {
		opt.apply(merged)
	}
	timeout, err := own.turnTime(v.timeout)
	if err != nil {
		return nil, err
	}
	if chars := utf8.RuneCountInString(merged.turnID); chars > maxIDChars {
		return nil, fmt.Errorf("gristmill: an id has 1 to %d characters, not %d", maxIDChars, chars)
	}
	turn := &generatorv1.Turn{Id: merged.turnID, Messages: chatMessages(messages), Priority: merged.priority}
	if own.params != nil {
		turn.Params = merged.params
	}
	if timeout > 0 {
		turn.Timeout = durationpb.New(timeout)
	}
	return turn, nil
}

// turnTime is the time that a turn has: its own, or what else holds.
func (c *call) turnTime(otherwise time.Duration) (time.Duration, error) {
	if c.turnTimeout == 0 {
		return otherwise, nil
	}
	if c.turnTimeout < minItemTimeout || c.turnTimeout > maxItemTimeout {
		return 0, fmt.Errorf("gristmill: a turn has %s to %s, not %s", minItemTimeout, maxItemTimeout, c.turnTimeout)
	}
	return c.turnTimeout, nil
}

// begin takes a turn in, and gives it an id if it has none.
func (v *Conversation) begin(turn *generatorv1.Turn) (*Answer, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.failure != nil:
		return nil, v.failure
	case v.underWay[turn.GetId()] != nil:
		return nil, fmt.Errorf("gristmill: the id %q is under way already", turn.GetId())
	case len(v.underWay) >= maxUnderWay:
		return nil, fmt.Errorf("gristmill: nothing was sent: %d turns are under way; range over an answer", maxUnderWay)
	}
	for turn.Id == "" {
		v.number++
		if id := strconv.FormatUint(v.number, 10); v.underWay[id] == nil {
			turn.Id = id
		}
	}
	answer := &Answer{ID: turn.GetId(), conversation: v}
	v.underWay[answer.ID] = answer
	return answer, nil
}

// notSent takes a turn out again and gives why: of a stream that has ended, what
// was received last.
func (v *Conversation) notSent(answer *Answer, err error) error {
	if errors.Is(err, io.EOF) {
		v.receive(func() bool { return v.failure != nil })
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.underWay, answer.ID)
	if v.failure != nil {
		return v.failure
	}
	return err
}

// stop ends an answer, once; its caller is the one that sends.
func (v *Conversation) stop(answer *Answer) {
	if answer == nil || answer.stopped || !v.isUnderWay(answer) {
		return
	}
	answer.stopped = true
	// An error is the end of the stream, which the answer tells.
	_ = v.messages.Send(&generatorv1.GenerateBidiRequest{Message: &generatorv1.GenerateBidiRequest_Cancel{
		Cancel: &generatorv1.CancelTurn{Id: answer.ID},
	}})
}

func (v *Conversation) isUnderWay(answer *Answer) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.underWay[answer.ID] == answer
}

// receive takes messages to the answers that they belong to, until something
// holds. One goroutine reads for all that wait.
func (v *Conversation) receive(until func() bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for !until() {
		if v.reading {
			v.changed.Wait()
			continue
		}
		v.reading = true
		v.mu.Unlock()
		message, err := v.messages.Recv()
		v.mu.Lock()
		v.reading = false
		if err != nil {
			v.end(err)
		} else {
			v.hear(message)
		}
		v.changed.Broadcast()
	}
}

func (v *Conversation) hear(message *generatorv1.GenerateBidiResponse) {
	answer := v.underWay[message.GetTurnId()]
	if answer == nil {
		return
	}
	switch {
	case message.GetStarted() != nil:
		answer.started = message.GetStarted()
	case message.GetDelta() != nil:
		answer.deltas = append(answer.deltas, message.GetDelta())
	case message.GetFinished() != nil:
		answer.finished = message.GetFinished()
	case message.GetError() != nil:
		answer.failure = newError(status.FromProto(message.GetError()), "")
	}
	if answer.isOver() {
		delete(v.underWay, answer.ID)
	}
}

// end is the end of the stream, and of all that is under way on it.
func (v *Conversation) end(err error) {
	v.cancel()
	if errors.Is(err, io.EOF) {
		err = brokenContract("the stream ended before the conversation did")
	}
	v.failure = err
	for id, answer := range v.underWay {
		answer.failure = err
		delete(v.underWay, id)
	}
}
