package gristmill

import (
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	errorsv1 "github.com/gristmill/gristmill/generated/go/gristmill/errors/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

const (
	defaultBookmarks = 30 * time.Second
	firstBackoff     = 100 * time.Millisecond
	lastBackoff      = 10 * time.Second
)

// WatchOption says what to watch.
type WatchOption func(*registryv1.WatchRequest)

// WithAfterRevision starts with the first change after a revision. Without it:
// a snapshot, then changes.
func WithAfterRevision(revision int64) WatchOption {
	return func(r *registryv1.WatchRequest) { r.AfterRevision = proto.Int64(revision) }
}

// WithModels watches only these models.
func WithModels(models ...string) WatchOption {
	return func(r *registryv1.WatchRequest) {
		for _, model := range models {
			r.Names = append(r.Names, modelName(model))
		}
	}
}

// WithTask watches only models of this task.
func WithTask(task registryv1.Task) WatchOption {
	return func(r *registryv1.WatchRequest) { r.Task = task }
}

// WithBookmarkInterval says how often the registry sends a sign of life when
// nothing changes, 1 second to an hour. Without it: 30 seconds. A registry that
// is silent for three times as long is taken to be cut off.
func WithBookmarkInterval(interval time.Duration) WatchOption {
	return func(r *registryv1.WatchRequest) { r.BookmarkInterval = durationpb.New(interval) }
}

// Watch yields the changes of the registry, each once and in order, until the
// context ends or the loop is left. When a watch that has begun is cut, it goes
// on after the last revision, for as long as it takes; a snapshot is yielded
// only when it is complete. What cannot be resumed ends it with an error: so
// does a revision that the registry no longer has, REVISION_COMPACTED, after
// which a new watch begins with a snapshot.
func (m *Models) Watch(ctx context.Context, opts ...WatchOption) iter.Seq2[*registryv1.WatchResponse, error] {
	return func(yield func(*registryv1.WatchResponse, error) bool) {
		w := &watcher{registry: m.registry, request: &registryv1.WatchRequest{}, yield: yield}
		for _, opt := range opts {
			opt(w.request)
		}
		bookmarks := defaultBookmarks
		if w.request.BookmarkInterval != nil {
			bookmarks = w.request.BookmarkInterval.AsDuration()
		}
		w.silence = 3 * bookmarks
		w.run(ctx)
	}
}

// watcher is one range over a watch. Its request always says where to go on.
type watcher struct {
	registry registryv1.RegistryServiceClient
	request  *registryv1.WatchRequest
	yield    func(*registryv1.WatchResponse, error) bool
	silence  time.Duration

	snapshot []*registryv1.WatchResponse // parts of a snapshot not yet complete
	begun    bool                        // a first message has come
	failures int                         // since the last message
}

func (w *watcher) run(ctx context.Context) {
	for {
		left, err := w.follow(ctx)
		if left {
			return
		}
		if ctx.Err() == nil && w.resumable(err) && wait(ctx, w.backoff(err)) {
			w.failures++
			w.snapshot = nil // the registry sends the whole of it again
			continue
		}
		w.yield(nil, lastError(ctx, err))
		return
	}
}

// follow reads one stream until the caller has left or the stream has ended.
func (w *watcher) follow(ctx context.Context) (left bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.registry.Watch(ctx, w.request)
	if err != nil {
		return false, err
	}
	// A connection that is gone without a word would leave Recv waiting for ever.
	alarm := time.AfterFunc(w.silence, cancel)
	defer alarm.Stop()
	for {
		message, err := stream.Recv()
		alarm.Stop() // time that the caller takes is not the registry's silence
		if err != nil {
			return false, err
		}
		w.begun, w.failures = true, 0
		if !w.deliver(message) {
			return true, nil
		}
		alarm.Reset(w.silence)
	}
}

// deliver yields a message, or keeps it while its snapshot is incomplete. False:
// the caller has left.
func (w *watcher) deliver(message *registryv1.WatchResponse) bool {
	if message.GetSnapshot() != nil {
		w.snapshot = append(w.snapshot, message)
		return true
	}
	parts := append(w.snapshot, message)
	if len(parts) > 1 && !message.GetBookmark().GetSnapshotComplete() {
		w.snapshot = parts
		return true
	}
	w.snapshot = nil
	w.request.AfterRevision = proto.Int64(message.GetRevision())
	for _, part := range parts {
		if !w.yield(part, nil) {
			return false
		}
	}
	return true
}

// resumable says whether another stream may go on where this one ended. A watch
// that never began is not resumed: a wrong address should be told.
func (w *watcher) resumable(err error) bool {
	return w.begun && (errors.Is(err, io.EOF) ||
		hasCode(err, codes.Unavailable) ||
		hasCode(err, codes.Canceled) || // by the alarm: the caller's context is alive
		HasReason(err, errorsv1.ErrorReason_ERROR_REASON_SLOW_CONSUMER))
}

// backoff doubles with each failure, is drawn at random so that watchers do not
// return all at once, and is never shorter than the registry asked for.
func (w *watcher) backoff(err error) time.Duration {
	ceiling := min(firstBackoff<<min(w.failures, 10), lastBackoff)
	delay := rand.N(ceiling)
	if e, ok := errors.AsType[*Error](err); ok {
		delay = max(delay, e.RetryAfter)
	}
	return delay
}

// lastError is the error that ends a watch.
func lastError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil: // while it waited, the context ended
		return newError(status.FromContextError(ctx.Err()), "")
	case errors.Is(err, io.EOF):
		return brokenContract("the watch ended before its first message")
	}
	return err
}

// wait reports false when the context ended first.
func wait(ctx context.Context, delay time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(delay):
		return true
	}
}
