package gristmill

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// windowItems is the server's own window, what it reads before it has sent
// results: within it neither end waits for a caller that has not begun to
// receive.
const windowItems = 1024

// window holds the ids that have no result yet, and bounds them.
type window struct {
	mu      sync.Mutex
	pending map[string]uint64 // by when they were sent
	sent    uint64
	shut    error         // why nothing goes in any more
	changed chan struct{} // closed, and replaced, when somebody may go in or need not wait
}

func newWindow() *window {
	return &window{pending: map[string]uint64{}, changed: make(chan struct{})}
}

// enter takes ids in, however many, while there is room for one. It waits for
// room no longer than patience, if that is not 0, and than the context.
func (w *window) enter(ctx context.Context, ids []string, patience time.Duration) error {
	var late <-chan time.Time
	if patience > 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late = timer.C
	}
	for {
		entered, changed, err := w.try(ids)
		if entered || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return w.left(ctx)
		case <-late:
			return newError(status.Newf(codes.DeadlineExceeded,
				"nothing was sent: %d items are under way and none was received for %s; receive in another goroutine",
				windowItems, patience), "")
		}
	}
}

func (w *window) try(ids []string) (entered bool, changed <-chan struct{}, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shut != nil {
		return false, nil, w.shut
	}
	if len(w.pending) >= windowItems {
		return false, w.changed, nil
	}
	for _, id := range ids {
		if _, used := w.pending[id]; used {
			return false, nil, fmt.Errorf("gristmill: the id %q is under way already", id)
		}
	}
	for _, id := range ids {
		w.sent++
		w.pending[id] = w.sent
	}
	return true, nil, nil
}

// left is why nobody goes in after the context has ended, which the end of the
// stream does too.
func (w *window) left(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shut != nil {
		return w.shut
	}
	return newError(status.FromContextError(ctx.Err()), "")
}

func (w *window) leave(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pending, id)
	w.tell()
}

// shutFor lets nobody in any more, nor wait; the first reason holds.
func (w *window) shutFor(reason error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shut == nil {
		w.shut = reason
	}
	w.tell()
}

func (w *window) tell() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// ids are those that have no result yet, in the order sent.
func (w *window) ids() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := make([]string, 0, len(w.pending))
	for id := range w.pending {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Compare(w.pending[a], w.pending[b]) })
	return ids
}
