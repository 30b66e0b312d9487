package gristmill

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
)

// endless sends started and one delta, then works until the call is cancelled,
// which it reports.
func endless(cancelled chan<- struct{}) *generatorFake {
	return &generatorFake{stream: func(_ *generatorv1.GenerateStreamRequest, out grpc.ServerStreamingServer[generatorv1.GenerateStreamResponse]) error {
		out.Send(started())
		out.Send(delta(0, "Once"))
		<-out.Context().Done()
		close(cancelled)
		return out.Context().Err()
	}}
}

func expectCancelled(t *testing.T, cancelled <-chan struct{}) {
	t.Helper()
	select {
	case <-cancelled:
	case <-time.After(10 * time.Second):
		t.Fatal("the server's call was not cancelled")
	}
}

func TestCloseCancelsTheServersCall(t *testing.T) {
	cancelled := make(chan struct{})
	client := serve(t, nil, endless(cancelled), nil)
	stream, err := client.Stream(t.Context(), "Tell")
	if err != nil {
		t.Fatal(err)
	}
	stream.Close()
	stream.Close()
	expectCancelled(t, cancelled)
	for text, err := range stream.Text() {
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("got %q, %v", text, err)
		}
	}
	if stream.Usage() != (Usage{}) || stream.FinishReason() != "" || stream.Finished() != nil {
		t.Error("a stream that was cut has no end to tell of")
	}
}

func TestCloseFromAnotherGoroutineEndsTheRange(t *testing.T) {
	cancelled := make(chan struct{})
	client := serve(t, nil, endless(cancelled), nil)
	stream, err := client.Stream(t.Context(), "Tell")
	if err != nil {
		t.Fatal(err)
	}
	var last error
	for _, err := range stream.Text() {
		last = err
		if err == nil {
			go stream.Close()
		}
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("got %v", last)
	}
	expectCancelled(t, cancelled)
}

func TestLeavingTheRangeCancelsTheServersCall(t *testing.T) {
	cancelled := make(chan struct{})
	client := serve(t, nil, endless(cancelled), nil)
	stream, err := client.Stream(t.Context(), "Tell")
	if err != nil {
		t.Fatal(err)
	}
	for range stream.Text() {
		break
	}
	expectCancelled(t, cancelled)
}

func TestLeavingClassifyStreamCancelsTheServersCall(t *testing.T) {
	cancelled := make(chan struct{})
	client := serve(t, &classifierFake{stream: func(_ *classifierv1.ClassifyStreamRequest, out grpc.ServerStreamingServer[classifierv1.ClassifyStreamResponse]) error {
		out.Send(&classifierv1.ClassifyStreamResponse{Result: answer("a", 1)})
		<-out.Context().Done()
		close(cancelled)
		return nil
	}}, nil, nil)
	for range client.ClassifyStream(t.Context(), Texts("a", "b")) {
		break
	}
	expectCancelled(t, cancelled)
}

func TestEndOfTheContextEndsTheRange(t *testing.T) {
	cancelled := make(chan struct{})
	client := serve(t, nil, endless(cancelled), nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := client.Stream(ctx, "Tell")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var last error
	for _, err := range stream.Text() {
		last = err
		cancel()
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("got %v", last)
	}
	expectCancelled(t, cancelled)
}
