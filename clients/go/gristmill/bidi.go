package gristmill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

// The contract's bounds, a breach of which would end the stream for everything
// on it.
const (
	maxItems       = 1024
	maxIDChars     = 128
	minItemTimeout = time.Millisecond
	maxItemTimeout = time.Hour
)

var errClosedSend = errors.New("gristmill: nothing can be sent after CloseSend")

// ClassifyBidiStream sends items when one likes and receives the prediction of
// each as soon as it is done, in any order. Any number of goroutines may send
// while one receives. Close it, also after its end.
type ClassifyBidiStream struct {
	messages grpc.BidiStreamingClient[classifierv1.ClassifyBidiRequest, classifierv1.ClassifyBidiResponse]
	ctx      context.Context // ends with the caller's, with Close and with the stream
	cancel   context.CancelFunc
	opts     []BidiOption
	timeout  time.Duration // of items; 0: the server's default
	window   *window

	sending sync.Mutex // gRPC sends one message at a time; what follows is of the last
	model   *registryv1.ModelRef
	options *classifierv1.ClassifyOptions
	closed  bool

	received []IdentifiedPrediction // by the one goroutine that receives
	failure  error                  // why nothing more comes
}

// WithItemTimeout sets the time that items have from their arrival, 1 ms to 1
// hour. Without it: the client's own, see [WithTimeout].
func WithItemTimeout(timeout time.Duration) BidiOption {
	return bidiOption{func(c *call) { c.itemTimeout = timeout }}
}

// ClassifyBidi opens a stream that lasts as long as its context. The options
// hold for what is sent without others. A refusal of the stream comes from Recv.
func (c *Client) ClassifyBidi(ctx context.Context, opts ...BidiOption) (*ClassifyBidiStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	messages, err := c.classifier.ClassifyBidi(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return &ClassifyBidiStream{
		messages: messages, ctx: ctx, cancel: cancel, opts: opts, window: newWindow(),
		timeout: min(c.timeout, maxItemTimeout),
		model:   &registryv1.ModelRef{}, options: &classifierv1.ClassifyOptions{},
	}, nil
}

// Send sends one item under an id, at most 128 characters, that none under way
// has. The options hold for this item only; another model or version comes
// without the version or alias of the stream's own.
//
// While 1,024 items are under way, sent and not yet received, it waits for
// another goroutine to receive, but no longer than the item has; then the error
// is DEADLINE_EXCEEDED and nothing was sent. io.EOF: the stream has ended, and
// Recv says why.
func (s *ClassifyBidiStream) Send(id string, item Item, opts ...BidiOption) error {
	return s.SendMany(map[string]Item{id: item}, opts...)
}

// SendMany sends 1 to 1,024 items by id in one message, otherwise as Send. A
// server with too little room for all of them refuses all.
func (s *ClassifyBidiStream) SendMany(items map[string]Item, opts ...BidiOption) error {
	ids := slices.Sorted(maps.Keys(items))
	request, err := s.request(items, ids, opts)
	if err != nil {
		return err
	}
	if err := s.window.enter(s.ctx, ids, request.GetTimeout().AsDuration()); err != nil {
		return err
	}
	s.sending.Lock()
	defer s.sending.Unlock()
	if s.closed {
		for _, id := range ids {
			s.window.leave(id)
		}
		return errClosedSend
	}
	model, options := request.Model, request.Options
	if proto.Equal(model, s.model) {
		request.Model = nil // as in the message before
	}
	if proto.Equal(options, s.options) {
		request.Options = nil
	}
	s.model, s.options = model, options
	return s.messages.Send(request)
}

// CloseSend says that nothing more will be sent: Recv gives io.EOF when all is
// answered.
func (s *ClassifyBidiStream) CloseSend() error {
	s.window.shutFor(errClosedSend)
	s.sending.Lock()
	defer s.sending.Unlock()
	s.closed = true
	return s.messages.CloseSend()
}

// Recv gives the next prediction; an item that failed alone, or was refused,
// says so in its Err. io.EOF: everything is answered after CloseSend. Any other
// error has ended the stream, and Pending has no result: after UNAVAILABLE, as
// of a server that drains, it may be sent again, here or elsewhere.
func (s *ClassifyBidiStream) Recv() (IdentifiedPrediction, error) {
	for len(s.received) == 0 {
		if s.failure != nil {
			return IdentifiedPrediction{}, s.failure
		}
		message, err := s.messages.Recv()
		if err != nil {
			s.end(err)
			continue
		}
		for _, r := range message.GetResults() {
			p := newPrediction(r.GetResult(), r.GetModel(), r.GetVersion(), "")
			s.received = append(s.received, IdentifiedPrediction{r.GetId(), p})
		}
	}
	first := s.received[0]
	s.received = s.received[1:]
	s.window.leave(first.ID)
	return first, nil
}

// Predictions yields what Recv gives, to the end. An error ends it, and breaking
// out cancels the call.
func (s *ClassifyBidiStream) Predictions() iter.Seq2[IdentifiedPrediction, error] {
	return func(yield func(IdentifiedPrediction, error) bool) {
		defer s.cancel()
		for {
			p, err := s.Recv()
			if errors.Is(err, io.EOF) || !yield(p, err) || err != nil {
				return
			}
		}
	}
}

// Pending are the ids that have no result yet, in the order sent.
func (s *ClassifyBidiStream) Pending() []string { return s.window.ids() }

// Close cancels what is still under way. It may be called at any time, more than
// once, and by any goroutine.
func (s *ClassifyBidiStream) Close() { s.cancel() }

func (s *ClassifyBidiStream) end(err error) {
	s.window.shutFor(io.EOF)
	s.cancel()
	s.failure = err
	if left := len(s.window.ids()); errors.Is(err, io.EOF) && left > 0 {
		s.failure = brokenContract("the stream ended before %d items were answered", left)
	}
}

// request is the message of these items, with model and options that are never
// nil.
func (s *ClassifyBidiStream) request(items map[string]Item, ids []string, opts []BidiOption) (*classifierv1.ClassifyBidiRequest, error) {
	if len(ids) < 1 || len(ids) > maxItems {
		return nil, fmt.Errorf("gristmill: a message has 1 to %d items, not %d", maxItems, len(ids))
	}
	call := newCall(slices.Concat(s.opts, opts))
	request := &classifierv1.ClassifyBidiRequest{
		Model: s.ref(opts), Options: &classifierv1.ClassifyOptions{}, Priority: call.priority,
	}
	if call.options != nil {
		request.Options = call.options
	}
	timeout := s.timeout
	if call.itemTimeout != 0 {
		timeout = call.itemTimeout
		if timeout < minItemTimeout || timeout > maxItemTimeout {
			return nil, fmt.Errorf("gristmill: items have %s to %s, not %s", minItemTimeout, maxItemTimeout, timeout)
		}
	}
	if timeout > 0 {
		request.Timeout = durationpb.New(timeout)
	}
	for _, id := range ids {
		if chars := utf8.RuneCountInString(id); chars < 1 || chars > maxIDChars {
			return nil, fmt.Errorf("gristmill: an id has 1 to %d characters, not %d", maxIDChars, chars)
		}
		request.Items = append(request.Items, &classifierv1.BidiItem{Id: id, Item: items[id].message})
	}
	return request, nil
}

// ref is the model of a message; the selector of the stream's own belongs to the
// stream's own model.
func (s *ClassifyBidiStream) ref(opts []BidiOption) *registryv1.ModelRef {
	stream, own := newCall(s.opts).ref(), newCall(opts).model
	if own == nil {
		return stream
	}
	if own.Model == "" {
		own.Model = stream.Model
	}
	return own
}
