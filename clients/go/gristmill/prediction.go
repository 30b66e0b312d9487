package gristmill

import (
	"google.golang.org/grpc/status"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
)

// Prediction is what became of one item: an answer, or Err.
type Prediction struct {
	// Label is the best label and Score its probability, from 0 to 1. Empty: a
	// multi-label model found none above the threshold, or Err is set.
	Label string
	Score float32
	// Labels are the labels, best first.
	Labels []LabelScore
	// Probabilities has one entry for each label, in the model's order of
	// labels. Nil unless asked for.
	Probabilities []float32
	// Truncated says that the input was cut to what the model takes.
	Truncated bool
	// Tokens is how many tokens the model read. 0: not a token model.
	Tokens uint32
	// Cached says that the answer came from the response cache.
	Cached bool
	// Model and Version answered.
	Model   string
	Version uint32
	// Timings says where the time went. Nil: the item was never queued.
	Timings *classifierv1.Timings
	// Err is an [*Error] when this item failed alone; nil when it did not.
	Err error
}

// LabelScore is a label and its probability.
type LabelScore struct {
	// Label is its name, Index its place in the model's order of labels.
	Label string
	Index uint32
	// Score is its probability, from 0 to 1.
	Score float32
}

// IndexedPrediction is a prediction of a stream.
type IndexedPrediction struct {
	// Index is the index of the item among those sent.
	Index int
	Prediction
}

// IdentifiedPrediction is a prediction of a [ClassifyBidiStream].
type IdentifiedPrediction struct {
	// ID is the id of the item, chosen when it was sent.
	ID string
	Prediction
}

func newPrediction(result *classifierv1.ItemResult, model string, version uint32, requestID string) Prediction {
	p := Prediction{Model: model, Version: version, Timings: result.GetTimings()}
	answer := result.GetClassification()
	switch {
	case result.GetError() != nil:
		p.Err = newError(status.FromProto(result.GetError()), requestID)
	case answer == nil:
		p.Err = brokenContract("an item has no outcome")
	}
	for _, label := range answer.GetLabels() {
		p.Labels = append(p.Labels, LabelScore{label.GetLabel(), label.GetIndex(), label.GetScore()})
	}
	if len(p.Labels) > 0 {
		p.Label, p.Score = p.Labels[0].Label, p.Labels[0].Score
	}
	p.Probabilities = answer.GetProbabilities()
	p.Truncated, p.Tokens, p.Cached = answer.GetTruncated(), answer.GetTokens(), answer.GetCached()
	return p
}
