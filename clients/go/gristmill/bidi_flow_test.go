package gristmill

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

// fill sends a whole window in one message.
func fill(t *testing.T, stream *ClassifyBidiStream) {
	t.Helper()
	items := map[string]Item{}
	for i := range windowItems {
		items[strconv.Itoa(i)] = Text("x")
	}
	must(t, stream.SendMany(items))
}

// sendLate sends one item more in another goroutine, which will wait.
func sendLate(stream *ClassifyBidiStream) <-chan error {
	sent := make(chan error, 1)
	go func() { sent <- stream.Send("late", Text("x")) }()
	return sent
}

func soon(t *testing.T, sent <-chan error) error {
	t.Helper()
	select {
	case err := <-sent:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the send waits for ever")
		return nil
	}
}

func TestBidiTakesAWindowBeforeAnythingIsReceived(t *testing.T) {
	stream := openBidi(t, (&bidiLog{}).answering(forever))
	for i := range windowItems {
		must(t, stream.Send(strconv.Itoa(i), Text("x")))
	}
	must(t, stream.CloseSend())
	count := 0
	for _, err := range stream.Predictions() {
		must(t, err)
		count++
	}
	if count != windowItems {
		t.Errorf("got %d", count)
	}
}

func TestBidiSendWaitsNoLongerThanItsItemHas(t *testing.T) {
	stream := openBidi(t, (&bidiLog{}).answering(forever))
	fill(t, stream)
	err := stream.Send("late", Text("x"), WithItemTimeout(20*time.Millisecond))
	if !IsDeadlineExceeded(err) || !strings.Contains(err.Error(), "nothing was sent") || len(stream.Pending()) != windowItems {
		t.Errorf("got %v", err)
	}
}

func TestBidiReceivingLetsAWaitingSendGo(t *testing.T) {
	stream := openBidi(t, (&bidiLog{}).answering(forever))
	fill(t, stream)
	sent := sendLate(stream)
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	must(t, soon(t, sent))
	if got := stream.Pending(); len(got) != windowItems || got[windowItems-1] != "late" {
		t.Errorf("got %v", got)
	}
}

func TestBidiCloseSendWakesAWaitingSend(t *testing.T) {
	stream := openBidi(t, (&bidiLog{}).answering(forever))
	fill(t, stream)
	sent := sendLate(stream)
	must(t, stream.CloseSend())
	if err := soon(t, sent); err == nil || !strings.Contains(err.Error(), "CloseSend") {
		t.Errorf("got %v", err)
	}
	if len(stream.Pending()) != windowItems {
		t.Errorf("pending %v", stream.Pending())
	}
}

func TestBidiSendThatCloseSendOvertakesIsNotPending(t *testing.T) {
	stream := openBidi(t, (&bidiLog{}).answering(forever))
	stream.closed = true // the send has found room already
	if err := stream.Send("a", Text("x")); !errors.Is(err, errClosedSend) || len(stream.Pending()) != 0 {
		t.Errorf("got %v, pending %v", err, stream.Pending())
	}
}

func TestBidiEndWakesAWaitingSend(t *testing.T) {
	hold := make(chan struct{})
	stream := openBidi(t, &classifierFake{bidi: func(stream bidiServer) error {
		<-hold
		return refusal(stream.Context(), codes.InvalidArgument, "INVALID_FIELD")
	}})
	fill(t, stream)
	sent := sendLate(stream)
	close(hold)
	if _, err := stream.Recv(); !IsInvalid(err) {
		t.Fatal(err)
	}
	if err := soon(t, sent); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}

// endlessBidi reads one message and then works until the call is cancelled,
// which it reports.
func endlessBidi(cancelled chan<- struct{}) *classifierFake {
	return &classifierFake{bidi: func(stream bidiServer) error {
		stream.Recv()
		<-stream.Context().Done()
		close(cancelled)
		return nil
	}}
}

func TestBidiCloseCancelsTheServersCall(t *testing.T) {
	cancelled := make(chan struct{})
	stream := openBidi(t, endlessBidi(cancelled))
	fill(t, stream)
	sent := sendLate(stream)
	stream.Close()
	stream.Close()
	expectCancelled(t, cancelled)
	if err := soon(t, sent); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := stream.Recv(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if len(stream.Pending()) != windowItems {
		t.Errorf("pending %v", stream.Pending())
	}
}

func TestBidiLeavingTheRangeCancelsTheServersCall(t *testing.T) {
	cancelled := make(chan struct{})
	stream := openBidi(t, &classifierFake{bidi: func(stream bidiServer) error {
		request, _ := stream.Recv()
		stream.Send(answersTo(request))
		return endlessBidi(cancelled).bidi(stream)
	}})
	must(t, stream.Send("a", Text("x")))
	for range stream.Predictions() {
		break
	}
	expectCancelled(t, cancelled)
}

func TestBidiLastsAsLongAsItsContext(t *testing.T) {
	for name, c := range map[string]struct {
		ctx  func() (context.Context, context.CancelFunc)
		want error
	}{
		"cancelled": {func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, cancel)
			return ctx, cancel
		}, context.Canceled},
		"late": {func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 20*time.Millisecond)
		}, context.DeadlineExceeded},
	} {
		cancelled := make(chan struct{})
		ctx, cancel := c.ctx()
		stream := openBidiOf(t, serve(t, endlessBidi(cancelled), nil, nil), ctx)
		must(t, stream.Send("a", Text("x")))
		if _, err := stream.Recv(); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v", name, err)
		}
		cancel()
	}
}
