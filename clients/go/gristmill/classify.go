package gristmill

import (
	"context"
	"errors"
	"io"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
)

// WithTopK asks for the k best labels of each item. Without it: the best one.
func WithTopK(k uint32) ClassifyOption {
	return classify(func(o *classifierv1.ClassifyOptions) { o.TopK = proto.Uint32(k) })
}

// WithProbabilities asks for the probability of every label too.
func WithProbabilities() ClassifyOption {
	return classify(func(o *classifierv1.ClassifyOptions) { o.ReturnProbabilities = true })
}

// WithThreshold asks a multi-label model for the labels at or above a
// probability instead of the best.
func WithThreshold(threshold float32) ClassifyOption {
	return classify(func(o *classifierv1.ClassifyOptions) { o.Threshold = proto.Float32(threshold) })
}

// WithTruncation says what to do with an input longer than the model takes.
// Without it: cut it.
func WithTruncation(truncation classifierv1.Truncation) ClassifyOption {
	return classify(func(o *classifierv1.ClassifyOptions) { o.Truncation = truncation })
}

// WithNoCache goes past the response cache.
func WithNoCache() ClassifyOption {
	return classify(func(o *classifierv1.ClassifyOptions) { o.NoCache = true })
}

func classify(set func(*classifierv1.ClassifyOptions)) ClassifyOption {
	return classifyOption{func(c *call) {
		if c.options == nil {
			c.options = &classifierv1.ClassifyOptions{}
		}
		set(c.options)
	}}
}

// Classify classifies up to 1,024 items and returns when all are done, with one
// prediction for each item in their order. The error is the whole call's; an
// item that fails alone says so in its Err.
func (c *Client) Classify(ctx context.Context, items []Item, opts ...ClassifyOption) ([]Prediction, error) {
	call := newCall(opts)
	var trailer metadata.MD
	response, err := c.classifier.Classify(ctx, &classifierv1.ClassifyRequest{
		Model: call.model, Items: itemMessages(items), Options: call.options, Priority: call.priority,
	}, grpc.Trailer(&trailer))
	if err != nil {
		return nil, err
	}
	if got := len(response.GetResults()); got != len(items) {
		return nil, brokenContract("%d results for %d items", got, len(items))
	}
	predictions := make([]Prediction, len(items))
	for i, result := range response.GetResults() {
		predictions[i] = newPrediction(result, response.GetModel(), response.GetVersion(), requestID(trailer))
	}
	return predictions, nil
}

// ClassifyStream classifies up to 65,536 items and yields each prediction as
// soon as it is done, in any order. An error ends it; an item that fails alone
// says so in its Err. The call is made when the sequence is ranged over, and
// breaking out cancels it.
func (c *Client) ClassifyStream(ctx context.Context, items []Item, opts ...ClassifyOption) iter.Seq2[IndexedPrediction, error] {
	call := newCall(opts)
	request := &classifierv1.ClassifyStreamRequest{
		Model: call.model, Items: itemMessages(items), Options: call.options, Priority: call.priority,
	}
	return func(yield func(IndexedPrediction, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.classifier.ClassifyStream(ctx, request)
		if err != nil {
			yield(IndexedPrediction{}, err)
			return
		}
		for {
			message, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(IndexedPrediction{}, err)
				return
			}
			if !yield(newIndexedPrediction(message), nil) {
				return
			}
		}
	}
}

func newIndexedPrediction(m *classifierv1.ClassifyStreamResponse) IndexedPrediction {
	return IndexedPrediction{int(m.GetIndex()), newPrediction(m.GetResult(), m.GetModel(), m.GetVersion(), "")}
}
