package gristmill

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

type asked struct {
	model   *registryv1.ModelRef
	options *classifierv1.ClassifyOptions
}

// bidiLog remembers the messages of a stream, and of each item the model and
// options that the contract says it is asked of.
type bidiLog struct {
	mu       sync.Mutex
	messages []*classifierv1.ClassifyBidiRequest
	asked    map[string]asked
}

// answering answers all items of a message at once, the last first; the text
// "bad" fails alone. It stops before a message for which stop says so.
func (l *bidiLog) answering(stop func(answered int) error) *classifierFake {
	l.asked = map[string]asked{}
	return &classifierFake{bidi: func(stream bidiServer) error {
		var last asked
		for count := 0; ; count++ {
			if err := stop(count); err != nil {
				return err
			}
			request, err := stream.Recv()
			if err != nil {
				return ignoreEOF(err)
			}
			l.remember(request, &last)
			if err := stream.Send(answersTo(request)); err != nil {
				return err
			}
		}
	}}
}

func (l *bidiLog) remember(request *classifierv1.ClassifyBidiRequest, last *asked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if request.Model != nil {
		last.model = request.Model
	}
	if request.Options != nil {
		last.options = request.Options
	}
	l.messages = append(l.messages, request)
	for _, item := range request.GetItems() {
		l.asked[item.GetId()] = *last
	}
}

func forever(int) error { return nil }

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func answersTo(request *classifierv1.ClassifyBidiRequest) *classifierv1.ClassifyBidiResponse {
	response := &classifierv1.ClassifyBidiResponse{}
	for _, item := range slices.Backward(request.GetItems()) {
		result := answer("positive", 0.9)
		if item.GetItem().GetText().GetText() == "bad" {
			result = itemFailure()
		}
		response.Results = append(response.Results, &classifierv1.BidiResult{
			Id: item.GetId(), Result: result, Model: "sentiment", Version: 3,
		})
	}
	return response
}

func openBidi(t *testing.T, fake *classifierFake, opts ...BidiOption) *ClassifyBidiStream {
	t.Helper()
	return openBidiOf(t, serve(t, fake, nil, nil), t.Context(), opts...)
}

func openBidiOf(t *testing.T, client *Client, ctx context.Context, opts ...BidiOption) *ClassifyBidiStream {
	t.Helper()
	stream, err := client.ClassifyBidi(ctx, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stream.Close)
	return stream
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
