package gristmill

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	errorsv1 "github.com/gristmill/gristmill/generated/go/gristmill/errors/v1"
)

func TestBidiTakesItemsOfSeveralGoroutines(t *testing.T) {
	log := &bidiLog{}
	stream := openBidi(t, log.answering(forever))
	var senders sync.WaitGroup
	for sender := range 8 {
		senders.Go(func() {
			for i := range 100 {
				id := fmt.Sprintf("%d.%d", sender, i)
				items := map[string]Item{id: Text("x"), id + " too": Text("y")}
				if err := stream.SendMany(items, WithModel(fmt.Sprintf("m%d", sender)), WithTopK(uint32(sender+1))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { senders.Wait(); stream.CloseSend() }()
	seen := map[string]bool{}
	for p, err := range stream.Predictions() {
		must(t, err)
		seen[p.ID] = true
	}
	if len(seen) != 1600 || len(stream.Pending()) != 0 {
		t.Errorf("got %d, pending %v", len(seen), stream.Pending())
	}
	for id, got := range log.asked {
		sender, _ := strconv.Atoi(id[:1])
		if got.model.GetModel() != "m"+id[:1] || got.options.GetTopK() != uint32(sender+1) {
			t.Errorf("%s: got %v", id, got)
		}
	}
}

func TestBidiLosesNothingWhenAServerDrains(t *testing.T) {
	for range 20 {
		log := &bidiLog{}
		stream := openBidi(t, log.answering(func(count int) error {
			if count == 50 {
				return refusal(nil, codes.Unavailable, "DRAINING")
			}
			return nil
		}))
		shares := make([][]string, 4)
		var senders sync.WaitGroup
		for sender := range shares {
			senders.Go(func() {
				for i := 0; ; i++ {
					id := fmt.Sprintf("%d.%d", sender, i)
					err := stream.Send(id, Text("x"))
					if err == nil || slices.Contains(stream.Pending(), id) {
						shares[sender] = append(shares[sender], id)
					}
					if errors.Is(err, io.EOF) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		var found []string
		var last error
		for p, err := range stream.Predictions() {
			if last = err; err == nil {
				found = append(found, p.ID)
			}
		}
		senders.Wait()
		if !IsUnavailable(last) || !HasReason(last, errorsv1.ErrorReason_ERROR_REASON_DRAINING) || len(found) != 50 {
			t.Errorf("got %d, %v", len(found), last)
		}
		sent, known := slices.Sorted(slices.Values(slices.Concat(shares...))), slices.Concat(found, stream.Pending())
		if slices.Sort(known); !slices.Equal(sent, known) {
			t.Errorf("sent %d, answered or pending %d", len(sent), len(known))
		}
	}
}
