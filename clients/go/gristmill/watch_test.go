package gristmill

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

type watchStream = grpc.ServerStreamingServer[registryv1.WatchResponse]

// watching plays one function for each call of Watch; the last one stays open.
func watching(calls ...func(*registryv1.WatchRequest, watchStream) error) *registryFake {
	var n atomic.Int32
	return &registryFake{watch: func(r *registryv1.WatchRequest, out watchStream) error {
		i := int(n.Add(1)) - 1
		if i < len(calls) {
			return calls[i](r, out)
		}
		<-out.Context().Done()
		return nil
	}}
}

func snapshotPart(name string) *registryv1.WatchResponse {
	return &registryv1.WatchResponse{Revision: 5, Event: &registryv1.WatchResponse_Snapshot{
		Snapshot: &registryv1.Resource{Resource: &registryv1.Resource_Model{Model: &registryv1.Model{Name: name}}},
	}}
}

func bookmark(revision int64, complete bool) *registryv1.WatchResponse {
	return &registryv1.WatchResponse{Revision: revision, Event: &registryv1.WatchResponse_Bookmark{
		Bookmark: &registryv1.Bookmark{SnapshotComplete: complete},
	}}
}

func change(revision int64) *registryv1.WatchResponse {
	return &registryv1.WatchResponse{Revision: revision, Event: &registryv1.WatchResponse_Change{
		Change: &registryv1.Change{Revision: revision},
	}}
}

func send(out watchStream, messages ...*registryv1.WatchResponse) {
	for _, message := range messages {
		out.Send(message)
	}
}

// take ranges until it has so many messages or an error.
func take(ctx context.Context, client *Client, count int, opts ...WatchOption) ([]*registryv1.WatchResponse, error) {
	var messages []*registryv1.WatchResponse
	for message, err := range client.Models().Watch(ctx, opts...) {
		if err != nil {
			return messages, err
		}
		if messages = append(messages, message); len(messages) == count {
			break
		}
	}
	return messages, nil
}

func TestWatchResumesAfterTheLastRevision(t *testing.T) {
	cuts := map[string]error{
		"drain":         refusal(nil, codes.Unavailable, "DRAINING"),
		"slow consumer": refusal(nil, codes.ResourceExhausted, "SLOW_CONSUMER"),
		"end":           nil,
	}
	for name, cut := range cuts {
		t.Run(name, func(t *testing.T) {
			client := serve(t, nil, nil, watching(
				func(r *registryv1.WatchRequest, out watchStream) error {
					if r.AfterRevision != nil || r.GetNames()[0] != "models/a" {
						t.Errorf("the first asks for %v", r)
					}
					send(out, snapshotPart("models/a"), bookmark(5, true), change(6))
					return cut
				},
				func(r *registryv1.WatchRequest, out watchStream) error {
					if r.GetAfterRevision() != 6 || r.GetNames()[0] != "models/a" {
						t.Errorf("the second asks for %v", r)
					}
					send(out, change(7), bookmark(8, false))
					return cut
				},
				func(r *registryv1.WatchRequest, out watchStream) error {
					if r.GetAfterRevision() != 8 {
						t.Errorf("the third asks for %v", r)
					}
					send(out, change(9))
					return nil
				},
			))
			messages, err := take(t.Context(), client, 6, WithModels("a"))
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range []int64{5, 5, 6, 7, 8, 9} {
				if messages[i].GetRevision() != want {
					t.Errorf("message %d has revision %d, not %d", i, messages[i].GetRevision(), want)
				}
			}
		})
	}
}

func TestSnapshotThatIsCutIsNotSeen(t *testing.T) {
	client := serve(t, nil, nil, watching(
		func(_ *registryv1.WatchRequest, out watchStream) error {
			send(out, snapshotPart("models/old"))
			return refusal(nil, codes.Unavailable, "DRAINING")
		},
		func(r *registryv1.WatchRequest, out watchStream) error {
			if r.AfterRevision != nil {
				t.Errorf("asks for changes after %d without having a snapshot", r.GetAfterRevision())
			}
			send(out, snapshotPart("models/a"), snapshotPart("models/b"), bookmark(5, true))
			return nil
		},
	))
	messages, err := take(t.Context(), client, 3)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"models/a", "models/b", ""} {
		if got := messages[i].GetSnapshot().GetModel().GetName(); got != want {
			t.Errorf("message %d is of %q, not %q", i, got, want)
		}
	}
}

func TestWatchThatNeverBeganIsNotResumed(t *testing.T) {
	client := serve(t, nil, nil, &registryFake{watch: func(*registryv1.WatchRequest, watchStream) error {
		return refusal(nil, codes.Unavailable, "DRAINING")
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := take(ctx, client, 1); asTyped(t, err).Reason != "DRAINING" {
		t.Errorf("got %v", err)
	}
}

func TestCompactedRevisionEndsTheWatch(t *testing.T) {
	client := serve(t, nil, nil, watching(
		func(r *registryv1.WatchRequest, out watchStream) error {
			if r.GetAfterRevision() != 2 {
				t.Errorf("got %v", r)
			}
			send(out, change(3))
			return nil
		},
		func(*registryv1.WatchRequest, watchStream) error {
			return refusal(nil, codes.OutOfRange, "REVISION_COMPACTED")
		},
	))
	messages, err := take(t.Context(), client, 2, WithAfterRevision(2))
	if len(messages) != 1 || asTyped(t, err).Reason != "REVISION_COMPACTED" {
		t.Errorf("got %v, %v", messages, err)
	}
}

func TestEndOfTheContextEndsTheWatch(t *testing.T) {
	for name, after := range map[string]func(watchStream) error{
		"while open": func(out watchStream) error { <-out.Context().Done(); return nil },
		"while waiting": func(watchStream) error {
			return refusal(nil, codes.Unavailable, "DRAINING", &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Hour)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			client := serve(t, nil, nil, watching(func(_ *registryv1.WatchRequest, out watchStream) error {
				send(out, change(3))
				return after(out)
			}))
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := take(ctx, client, 2); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestSilentRegistryIsAskedAgain(t *testing.T) {
	client := serve(t, nil, nil, watching(
		func(_ *registryv1.WatchRequest, out watchStream) error {
			send(out, change(3))
			<-out.Context().Done() // neither a bookmark nor an end
			return nil
		},
		func(r *registryv1.WatchRequest, out watchStream) error {
			send(out, change(r.GetAfterRevision()+1))
			return nil
		},
	))
	var revisions []int64
	w := &watcher{registry: client.Registry(), request: &registryv1.WatchRequest{}, silence: 100 * time.Millisecond}
	w.yield = func(message *registryv1.WatchResponse, err error) bool {
		if err != nil {
			t.Error(err)
		}
		revisions = append(revisions, message.GetRevision())
		return len(revisions) < 2
	}
	w.run(t.Context())
	if len(revisions) != 2 || revisions[1] != 4 {
		t.Errorf("got %v", revisions)
	}
}

func TestBackoffGrowsToALimitAndHeedsTheServer(t *testing.T) {
	for failures, ceiling := range map[int]time.Duration{0: firstBackoff, 3: 8 * firstBackoff, 60: lastBackoff} {
		w := &watcher{failures: failures}
		for range 100 {
			if delay := w.backoff(nil); delay < 0 || delay >= ceiling {
				t.Fatalf("after %d failures: %v", failures, delay)
			}
		}
	}
	if delay := (&watcher{}).backoff(&Error{RetryAfter: time.Minute}); delay != time.Minute {
		t.Errorf("got %v", delay)
	}
}
