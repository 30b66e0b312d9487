package gristmill

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

func TestConversationAnswersEachTurn(t *testing.T) {
	conversation := converseWith(t, (&parrot{}).fake(), t.Context())
	first := say(t, conversation, "one")
	if text, err := textOf(first); text != "one" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	if first.ID != "1" || first.FinishReason() != FinishLength || first.Usage() != (Usage{5, 0, 2}) || first.Started().GetVersion() != 3 {
		t.Errorf("got %q, %q, %v, %v", first.ID, first.FinishReason(), first.Usage(), first.Started())
	}
	if text, err := textOf(first); text != "" || err != nil {
		t.Errorf("a second range gives %q, %v", text, err)
	}
	second := say(t, conversation, "two", WithTurnID("t"))
	if text, err := textOf(second); text != "two" || err != nil || second.ID != "t" {
		t.Errorf("got %q, %v", text, err)
	}
}

func TestConversationSaysWhatHoldsForAllTurnsAndForOne(t *testing.T) {
	heard := &parrot{}
	tool := &generatorv1.Tool{Name: "add"}
	conversation := converseWith(t, heard.fake(), t.Context(), WithAlias("live"), WithHistory(System("S."), User("Hi")),
		WithTools(tool), WithMaxTokens(5), WithJSONSchema("{}"), WithPriority(3), WithTurnTimeout(time.Second))
	textOf(say(t, conversation, "a"))
	answer, err := conversation.SayMessages([]Message{User("b"), User("c")}, WithTemperature(0), WithPriority(1), WithTurnTimeout(time.Minute))
	must(t, err)
	textOf(answer)
	schema := &generatorv1.OutputConstraint{Constraint: &generatorv1.OutputConstraint_JsonSchema{JsonSchema: "{}"}}
	opened := &generatorv1.OpenConversation{
		Model:   &registryv1.ModelRef{Model: "parrot", Selector: &registryv1.ModelRef_Alias{Alias: "live"}},
		History: chatMessages([]Message{System("S."), User("Hi")}),
		Params:  &generatorv1.SamplingParams{MaxTokens: proto.Uint32(5), Constraint: schema},
		Tools:   []*generatorv1.Tool{tool},
	}
	first := &generatorv1.Turn{
		Id: "1", Messages: chatMessages([]Message{User("a")}), Priority: 3, Timeout: durationpb.New(time.Second),
	}
	second := &generatorv1.Turn{
		Id: "2", Messages: chatMessages([]Message{User("b"), User("c")}), Priority: 1, Timeout: durationpb.New(time.Minute),
		Params: &generatorv1.SamplingParams{MaxTokens: proto.Uint32(5), Temperature: proto.Float32(0), Constraint: schema},
	}
	got := heard.heard()
	if !proto.Equal(got[0].GetOpen(), opened) || !proto.Equal(got[1].GetTurn(), first) || !proto.Equal(got[2].GetTurn(), second) {
		t.Errorf("got %v", got)
	}
}

func TestConversationTurnsHaveTheClientsTime(t *testing.T) {
	heard := &parrot{}
	client := serve(t, nil, heard.fake(), nil, WithGenerateTimeout(2*time.Hour))
	conversation, err := client.Converse(t.Context(), "")
	must(t, err)
	defer conversation.Close()
	textOf(say(t, conversation, "a"))
	if got := heard.heard(); got[0].GetOpen().Model != nil || got[1].GetTurn().GetTimeout().AsDuration() != time.Hour {
		t.Errorf("got %v", got)
	}
}

func TestConversationTurnEndsTheAnswerInHand(t *testing.T) {
	conversation := converseWith(t, (&parrot{}).fake(), t.Context())
	first := say(t, conversation, "hold")
	if got := heardFirst(t, first); got != "h" || first.FinishReason() != "" {
		t.Errorf("got %q, %q", got, first.FinishReason())
	}
	second := say(t, conversation, "two")
	if text, err := textOf(second); text != "two" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	if text, err := textOf(first); text != "" || err != nil || first.FinishReason() != FinishCancelled {
		t.Errorf("got %q, %v, %q", text, err, first.FinishReason())
	}
}

func TestConversationMayBeInterruptedByAnotherGoroutine(t *testing.T) {
	conversation := converseWith(t, (&parrot{}).fake(), t.Context())
	for range 50 {
		first := say(t, conversation, "hold")
		read := make(chan error, 1)
		go func() {
			_, err := textOf(first)
			read <- err
		}()
		second := say(t, conversation, "two")
		if text, err := textOf(second); text != "two" || err != nil {
			t.Fatalf("got %q, %v", text, err)
		}
		must(t, soon(t, read))
		if first.FinishReason() != FinishCancelled {
			t.Errorf("got %q", first.FinishReason())
		}
	}
}

func TestConversationCancelEndsTheAnswerInHand(t *testing.T) {
	heard := &parrot{}
	conversation := converseWith(t, heard.fake(), t.Context())
	conversation.Cancel()
	first := say(t, conversation, "hold")
	conversation.Cancel()
	conversation.Cancel()
	if text, err := textOf(first); text != "h" || err != nil || first.FinishReason() != FinishCancelled {
		t.Errorf("got %q, %v, %q", text, err, first.FinishReason())
	}
	conversation.Cancel()
	if text, err := textOf(say(t, conversation, "two")); text != "two" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	if got := heard.heard(); len(got) != 4 || got[2].GetCancel().GetId() != "1" {
		t.Errorf("got %v", got)
	}
}

func TestConversationLeavingARangeEndsThatAnswerAlone(t *testing.T) {
	conversation := converseWith(t, (&parrot{}).fake(), t.Context())
	first := say(t, conversation, "hold")
	for range first.Text() {
		break
	}
	first.Close()
	if text, err := textOf(first); text != "" || err != nil || first.FinishReason() != FinishCancelled {
		t.Errorf("got %q, %v, %q", text, err, first.FinishReason())
	}
	if text, err := textOf(say(t, conversation, "two")); text != "two" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
}

func TestConversationGoesOnWithoutATurnThatFails(t *testing.T) {
	conversation := converseWith(t, (&parrot{}).fake(), t.Context())
	bad := say(t, conversation, "bad")
	for range 2 {
		_, err := textOf(bad)
		if asTyped(t, err).Reason != "BACKEND_FAILED" || bad.FinishReason() != "" || bad.Finished() != nil {
			t.Errorf("got %v", err)
		}
	}
	if text, err := textOf(say(t, conversation, "two")); text != "two" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
}

func TestConversationThatADrainEndsFinishesTheAnswerInHand(t *testing.T) {
	conversation := converseWith(t, (&parrot{}).fake(), t.Context())
	if text, err := textOf(say(t, conversation, "drain")); text != "drain" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	for range 100 {
		answer, err := conversation.Say("more")
		if err == nil { // it was sent before the end was known
			_, err = textOf(answer)
		}
		if !IsUnavailable(err) || asTyped(t, err).Reason != "DRAINING" || asTyped(t, err).RequestID != "r-1" {
			t.Fatalf("got %v", err)
		}
	}
	conversation.Cancel()
}

func TestConversationThatEndsTooSoonIsBroken(t *testing.T) {
	conversation := converseWith(t, &generatorFake{bidi: func(stream conversationServer) error {
		stream.Recv()
		_, err := stream.Recv()
		return err
	}}, t.Context())
	answer := say(t, conversation, "a")
	if _, err := textOf(answer); asTyped(t, err).Code != codes.Internal {
		t.Errorf("got %v", err)
	}
}

func TestConversationRefusedAtItsBeginningSaysWhy(t *testing.T) {
	conversation := converseWith(t, &generatorFake{bidi: func(stream conversationServer) error {
		return refusal(stream.Context(), codes.NotFound, "MODEL_NOT_FOUND")
	}}, t.Context())
	answer, err := conversation.Say("a")
	if err == nil {
		_, err = textOf(answer)
	}
	if !IsNotFound(err) || errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}

func TestConversationCloseCancelsTheServersCall(t *testing.T) {
	cancelled := make(chan struct{})
	conversation := converseWith(t, &generatorFake{bidi: func(stream conversationServer) error {
		<-stream.Context().Done()
		close(cancelled)
		return nil
	}}, t.Context())
	answer := say(t, conversation, "a")
	read := make(chan error, 1)
	go func() {
		_, err := textOf(answer)
		read <- err
	}()
	conversation.Close()
	conversation.Close()
	expectCancelled(t, cancelled)
	if err := soon(t, read); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := conversation.Say("b"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestConversationLastsAsLongAsItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	conversation := converseWith(t, (&parrot{}).fake(), ctx)
	if _, err := textOf(say(t, conversation, "hold")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestConversationDoesNotSendWhatWouldEndIt(t *testing.T) {
	heard := &parrot{}
	conversation := converseWith(t, heard.fake(), t.Context())
	answer := say(t, conversation, "hold", WithTurnID("used"))
	for name, c := range map[string]struct {
		messages []Message
		opt      SayOption
	}{
		"an id under way":   {[]Message{User("x")}, WithTurnID("used")},
		"a long id":         {[]Message{User("x")}, WithTurnID(strings.Repeat("i", 129))},
		"too little time":   {[]Message{User("x")}, WithTurnTimeout(time.Microsecond)},
		"too much time":     {[]Message{User("x")}, WithTurnTimeout(2 * time.Hour)},
		"nothing":           {nil, WithPriority(1)},
		"too many messages": {make([]Message, 129), WithPriority(1)},
	} {
		if _, err := conversation.SayMessages(c.messages, c.opt); err == nil {
			t.Errorf("%s was sent", name)
		}
	}
	conversation.Cancel()
	textOf(answer)
	if got := len(heard.heard()); got != 3 {
		t.Errorf("%d messages were sent", got)
	}
	if _, err := serve(t, nil, heard.fake(), nil).Converse(t.Context(), "", WithTurnTimeout(2*time.Hour)); err == nil {
		t.Error("turns of two hours")
	}
}

func TestConversationBoundsTheTurnsUnderWay(t *testing.T) {
	conversation := converseWith(t, (&parrot{}).fake(), t.Context())
	first := say(t, conversation, "hold")
	for range maxUnderWay - 1 {
		say(t, conversation, "hold")
	}
	if _, err := conversation.Say("more"); err == nil || !strings.Contains(err.Error(), "64 turns are under way") {
		t.Errorf("got %v", err)
	}
	if text, err := textOf(first); text != "h" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	say(t, conversation, "more")
}
