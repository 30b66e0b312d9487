package gristmill_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"time"

	"github.com/gristmill/gristmill/clients/go/gristmill"
)

// The suite of `make run` is at the default addresses.
func Example() {
	client, err := gristmill.New()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	predictions, err := client.Classify(ctx, gristmill.Texts("I love this.", "What a waste."), gristmill.WithModel("sentiment"))
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range predictions {
		if p.Err != nil { // this item failed alone
			log.Print(p.Err)
			continue
		}
		fmt.Printf("%s %.2f\n", p.Label, p.Score)
	}

	stream, err := client.StreamChat(ctx, []gristmill.Message{gristmill.User("Why is the sky blue?")},
		gristmill.WithModel("smollm2"), gristmill.WithMaxTokens(64))
	if err != nil {
		log.Fatal(err)
	}
	defer stream.Close()
	for text, err := range stream.Text() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(text)
	}
	fmt.Println("\n", stream.FinishReason(), stream.Usage().CompletionTokens, "tokens")
}

// One goroutine sends, another receives; each item has its own time and urgency.
func ExampleClient_ClassifyBidi() {
	client, err := gristmill.New()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	stream, err := client.ClassifyBidi(context.Background(), gristmill.WithModel("sentiment"))
	if err != nil {
		log.Fatal(err)
	}
	defer stream.Close()
	go func() {
		defer stream.CloseSend()
		for i, text := range []string{"I love it.", "I expected better."} {
			err := stream.Send(fmt.Sprint(i), gristmill.Text(text), gristmill.WithItemTimeout(500*time.Millisecond), gristmill.WithPriority(1))
			if err != nil {
				return // the other side hears why
			}
		}
	}()
	for p, err := range stream.Predictions() {
		if err != nil {
			log.Fatalf("%v; no result of %v", err, stream.Pending())
		}
		if p.Err != nil { // this item failed alone
			log.Print(p.ID, p.Err)
			continue
		}
		fmt.Printf("%s: %s %.2f\n", p.ID, p.Label, p.Score)
	}
}

// The second turn interrupts the answer to the first.
func ExampleClient_Converse() {
	client, err := gristmill.New()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	conversation, err := client.Converse(context.Background(), "smollm2",
		gristmill.WithHistory(gristmill.System("Be brief.")), gristmill.WithMaxTokens(64))
	if err != nil {
		log.Fatal(err)
	}
	defer conversation.Close()
	for _, turn := range []string{"Count to a thousand.", "Stop. How far did you come?"} {
		answer, err := conversation.Say(turn, gristmill.WithTurnTimeout(30*time.Second))
		if err != nil { // the conversation has ended
			log.Fatal(err)
		}
		for text, err := range answer.Text() {
			if err != nil { // this turn failed, perhaps alone
				log.Print(err)
				break
			}
			fmt.Print(text)
			if strings.Contains(text, "7") {
				break // which ends the answer
			}
		}
	}
}

// What a server refuses says why, and when to try again.
func ExampleError() {
	client, err := gristmill.New(gristmill.WithClassifier("classifier.internal:50052"), gristmill.WithTLS(nil))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	_, err = client.Classify(context.Background(), gristmill.Texts("Hello"))
	var failure *gristmill.Error
	switch {
	case gristmill.IsOverloaded(err) && errors.As(err, &failure):
		log.Printf("try again in %s", failure.RetryAfter)
	case errors.As(err, &failure):
		log.Printf("%s, see request %s in the server's log", failure.Reason, failure.RequestID)
	}
}

// A watch goes on where it was cut, until the context ends.
func ExampleModels_Watch() {
	client, err := gristmill.New()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	for event, err := range client.Models().Watch(context.Background(), gristmill.WithModels("sentiment")) {
		if err != nil {
			log.Fatal(err)
		}
		if change := event.GetChange(); change != nil {
			fmt.Println(event.GetRevision(), change.GetName(), change.GetKind())
		}
	}
}
