package gristmill_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gristmill/gristmill/clients/go/gristmill"
)

// These tests call the running suite, at the addresses of GRISTMILL_CLASSIFIER,
// GRISTMILL_GENERATOR and GRISTMILL_REGISTRY. Run them with -count=1: the go
// command cannot see that the suite has changed and would repeat an old result.

func suiteClient(t *testing.T) (*gristmill.Client, context.Context) {
	t.Helper()
	if os.Getenv("GRISTMILL_E2E") != "1" {
		t.Skip("needs the running suite: start it with `make run`, then set GRISTMILL_E2E=1")
	}
	client, err := gristmill.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return client, ctx
}

func TestSuiteClassifies(t *testing.T) {
	client, ctx := suiteClient(t)
	texts := gristmill.Texts("I love this wonderful film.", "This is a terrible, boring waste of time.")
	predictions, err := client.Classify(ctx, texts, gristmill.WithModel("sentiment"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"positive", "negative"} {
		p := predictions[i]
		if p.Err != nil || p.Label != want || p.Score < 0.5 || p.Score > 1 {
			t.Errorf("item %d is %q (%g), %v; want %q", i, p.Label, p.Score, p.Err, want)
		}
		if p.Model != "sentiment" || p.Version == 0 || p.Tokens == 0 {
			t.Errorf("item %d was answered by %q version %d from %d tokens", i, p.Model, p.Version, p.Tokens)
		}
	}
}

func TestSuiteStreamsTokens(t *testing.T) {
	client, ctx := suiteClient(t)
	stream, err := client.StreamChat(ctx, []gristmill.Message{gristmill.User("Name three colours.")},
		gristmill.WithModel("smollm2"), gristmill.WithMaxTokens(24), gristmill.WithTemperature(0))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var text strings.Builder
	deltas := 0
	for piece, err := range stream.Text() {
		if err != nil {
			t.Fatal(err)
		}
		if piece == "" {
			t.Error("an empty delta")
		}
		text.WriteString(piece)
		deltas++
	}
	if strings.TrimSpace(text.String()) == "" || deltas < 2 {
		t.Errorf("%d deltas join to %q", deltas, text.String())
	}
	usage := stream.Usage()
	if usage.PromptTokens == 0 || usage.CompletionTokens == 0 || usage.CompletionTokens > 24 || stream.FinishReason() == "" {
		t.Errorf("usage %+v, ended by %q", usage, stream.FinishReason())
	}
}

func TestSuiteRegistryResolvesWhatAnswers(t *testing.T) {
	client, ctx := suiteClient(t)
	resolved, err := client.Models().Resolve(ctx, "sentiment")
	if err != nil {
		t.Fatal(err)
	}
	if resolved.Version.GetVersion() == 0 || resolved.ChosenBy == "" {
		t.Errorf("got %v", resolved)
	}
}

func TestSuiteRegistryTellsWhatWasServed(t *testing.T) {
	client, ctx := suiteClient(t)
	models := client.Models()
	changes, err := models.History(ctx, "sentiment", gristmill.WithResource("aliases/live"))
	if err != nil || len(changes) == 0 {
		t.Fatalf("got %v, %v", changes, err)
	}
	moved := changes[0].GetCommitTime().AsTime()
	at, err := models.At(ctx, "sentiment", moved.Add(time.Millisecond), "live")
	if err != nil || at.GetAlias().GetVersion() != changes[0].GetAfter().GetAlias().GetVersion() {
		t.Errorf("got %v, %v", at, err)
	}
	before, err := models.At(ctx, "sentiment", moved.Add(-time.Hour), "")
	if err != nil || before != nil {
		t.Errorf("got %v, %v", before, err)
	}
	versions, err := models.Versions(ctx, "sentiment", gristmill.WithFilter("state = READY"))
	if err != nil || len(versions) == 0 {
		t.Errorf("got %v, %v", versions, err)
	}
	if _, err := models.Sources(ctx); err != nil {
		t.Error(err)
	}
	operations, err := models.ListOperations(ctx, gristmill.WithFilter("done = true"))
	if err != nil {
		t.Fatal(err)
	}
	for _, operation := range operations {
		if err := operation.Wait(ctx); err != nil && operation.Kind == "finalize" {
			t.Errorf("%s: %v", operation.Name, err)
		}
	}
	if _, err := models.Operation(ctx, "evaluate.0000000000000000"); !gristmill.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}
