package gristmill

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

func TestBidiGivesResultsUnderTheIDsThatWereSent(t *testing.T) {
	log := &bidiLog{}
	stream := openBidi(t, log.answering(forever), WithModel("models/sentiment"), WithTopK(2))
	must(t, stream.Send("a", Text("I love it.")))
	must(t, stream.SendMany(map[string]Item{"b": Text("bad"), "c": TextPair("x", "y"), "d": Features(1, 2)},
		WithItemTimeout(500*time.Millisecond), WithPriority(1)))
	must(t, stream.CloseSend())
	var ids []string
	for p, err := range stream.Predictions() {
		must(t, err)
		ids = append(ids, p.ID)
		if (p.ID == "b") != IsInvalid(p.Err) || p.Model != "sentiment" || p.Version != 3 {
			t.Errorf("got %+v", p)
		}
	}
	if !slices.Equal(ids, []string{"a", "d", "c", "b"}) || len(stream.Pending()) != 0 {
		t.Errorf("got %v, pending %v", ids, stream.Pending())
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
	first, second := log.messages[0], log.messages[1]
	if first.GetTimeout().AsDuration() != 30*time.Second || first.GetPriority() != 0 || first.GetModel().GetModel() != "sentiment" {
		t.Errorf("got %v", first)
	}
	if second.GetTimeout().AsDuration() != 500*time.Millisecond || second.GetPriority() != 1 || second.Model != nil || second.Options != nil {
		t.Errorf("got %v", second)
	}
}

func TestBidiMessageMayHaveItsOwnModelAndOptions(t *testing.T) {
	log := &bidiLog{}
	stream := openBidi(t, log.answering(forever), WithModel("sentiment"), WithAlias("live"), WithTopK(2))
	live := &registryv1.ModelRef{Model: "sentiment", Selector: &registryv1.ModelRef_Alias{Alias: "live"}}
	two := &classifierv1.ClassifyOptions{TopK: proto.Uint32(2)}
	cases := []struct {
		id      string
		opts    []BidiOption
		model   *registryv1.ModelRef
		options *classifierv1.ClassifyOptions
		said    [2]bool
	}{
		{"as opened", nil, live, two, [2]bool{true, true}},
		{"again", nil, live, two, [2]bool{}},
		{"another model", []BidiOption{WithModel("iris")}, &registryv1.ModelRef{Model: "iris"}, two, [2]bool{true, false}},
		{"the first again", nil, live, two, [2]bool{true, false}},
		{"its version", []BidiOption{WithVersion(7)}, &registryv1.ModelRef{Model: "sentiment", Selector: &registryv1.ModelRef_Version{Version: 7}}, two, [2]bool{true, false}},
		{"more labels", []BidiOption{WithTopK(5), WithNoCache()}, live, &classifierv1.ClassifyOptions{TopK: proto.Uint32(5), NoCache: true}, [2]bool{true, true}},
		{"last", nil, live, two, [2]bool{false, true}},
	}
	for _, c := range cases {
		must(t, stream.Send(c.id, Text("x"), c.opts...))
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range cases {
		got := log.asked[c.id]
		if !proto.Equal(got.model, c.model) || !proto.Equal(got.options, c.options) {
			t.Errorf("%s: got %v, %v", c.id, got.model, got.options)
		}
		if said := [2]bool{log.messages[i].Model != nil, log.messages[i].Options != nil}; said != c.said {
			t.Errorf("%s: said %v", c.id, said)
		}
	}
}

func TestBidiMayMeanTheOnlyModelServedAgain(t *testing.T) {
	log := &bidiLog{}
	stream := openBidi(t, log.answering(forever))
	must(t, stream.Send("1", Text("x")))
	must(t, stream.Send("2", Text("x"), WithModel("iris")))
	must(t, stream.Send("3", Text("x")))
	must(t, stream.CloseSend())
	for _, err := range stream.Predictions() {
		must(t, err)
	}
	if log.messages[0].Model != nil || log.asked["2"].model.GetModel() != "iris" || log.messages[2].Model == nil || log.asked["3"].model.GetModel() != "" {
		t.Errorf("got %v", log.messages)
	}
}

func TestBidiDoesNotSendWhatWouldEndIt(t *testing.T) {
	hold := make(chan struct{})
	stream := openBidi(t, &classifierFake{bidi: func(stream bidiServer) error { <-hold; return nil }})
	defer close(hold)
	must(t, stream.Send("used", Text("x")))
	many := map[string]Item{}
	for i := range 1025 {
		many[strings.Repeat("i", i%128+1)+string(rune('a'+i/128))] = Text("x")
	}
	for name, err := range map[string]error{
		"an id under way":      stream.Send("used", Text("x")),
		"and one beside it":    stream.SendMany(map[string]Item{"new": Text("x"), "used": Text("x")}),
		"an empty id":          stream.Send("", Text("x")),
		"a long id":            stream.Send(strings.Repeat("i", 129), Text("x")),
		"nothing":              stream.SendMany(nil),
		"too much":             stream.SendMany(many),
		"a short time":         stream.Send("y", Text("x"), WithItemTimeout(time.Microsecond)),
		"a long time":          stream.Send("y", Text("x"), WithItemTimeout(2*time.Hour)),
		"a time that has been": stream.Send("y", Text("x"), WithItemTimeout(-time.Second)),
	} {
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if got := stream.Pending(); !slices.Equal(got, []string{"used"}) {
		t.Errorf("pending %v", got)
	}
	must(t, stream.CloseSend())
	if err := stream.Send("z", Text("x")); err == nil || !strings.Contains(err.Error(), "CloseSend") || len(stream.Pending()) != 1 {
		t.Errorf("got %v, pending %v", err, stream.Pending())
	}
}

func TestBidiItemsHaveTheClientsTimeout(t *testing.T) {
	for given, want := range map[time.Duration]time.Duration{time.Minute: time.Minute, 2 * time.Hour: time.Hour, 0: 0} {
		log := &bidiLog{}
		client := serve(t, log.answering(forever), nil, nil, WithTimeout(given))
		stream := openBidiOf(t, client, t.Context())
		must(t, stream.Send("a", Text("x")))
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		if got := log.messages[0].GetTimeout(); got.AsDuration() != want || (got == nil) != (want == 0) {
			t.Errorf("%s: got %v", given, got)
		}
	}
}

func TestBidiEndsWithTheErrorOfTheStreamAfterItsResults(t *testing.T) {
	log := &bidiLog{}
	stream := openBidi(t, &classifierFake{bidi: func(stream bidiServer) error {
		return log.answering(func(count int) error {
			if count == 1 {
				return refusal(stream.Context(), codes.InvalidArgument, "INVALID_FIELD")
			}
			return nil
		}).bidi(stream)
	}})
	must(t, stream.SendMany(map[string]Item{"a": Text("x"), "b": Text("y")}))
	must(t, stream.Send("c", Text("z")))
	for _, want := range []string{"b", "a"} {
		if p, err := stream.Recv(); err != nil || p.ID != want {
			t.Fatalf("got %v, %v", p, err)
		}
	}
	for range 2 {
		if _, err := stream.Recv(); !IsInvalid(err) || asTyped(t, err).RequestID != "r-1" {
			t.Errorf("got %v", err)
		}
	}
	if err := stream.Send("d", Text("x")); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
	if got := stream.Pending(); !slices.Equal(got, []string{"c"}) {
		t.Errorf("pending %v", got)
	}
}

func TestBidiThatEndsTooSoonIsBroken(t *testing.T) {
	stream := openBidi(t, &classifierFake{bidi: func(stream bidiServer) error {
		_, err := stream.Recv()
		return err
	}})
	must(t, stream.Send("a", Text("x")))
	if _, err := stream.Recv(); asTyped(t, err).Code != codes.Internal || len(stream.Pending()) != 1 {
		t.Errorf("got %v", err)
	}
}
