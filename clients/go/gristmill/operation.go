package gristmill

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

const (
	longestWait  = 20 * time.Second // of one call
	tellingWait  = time.Second      // of one call, with somebody to tell
	waitSlack    = 10 * time.Second // what a call may take beyond its wait
	waitFailures = 8                // calls that fail one after the other
)

// Operation is long work of the registry, as it stood when it was last asked
// for. It is not for concurrent use.
type Operation struct {
	// Name is such as "operations/evaluate.1f2e3d4c".
	Name string
	// Kind is "finalize", "import", "convert", "evaluate" or "profile".
	Kind string
	// Subject is the full name of the model or version that the work is on.
	Subject string
	// Progress is from 0 to 1.
	Progress float64
	// Message says what is being done, for people.
	Message string
	// Done: the work has ended, with a Version, a Profile or Err.
	Done bool
	// Version is what all work but a profile ends with.
	Version *registryv1.ModelVersion
	// Profile is what a profile ends with.
	Profile *registryv1.ModelVersionProfile
	// Err is why the work failed, an [*Error].
	Err error

	stub longrunningpb.OperationsClient
}

// Operation reads one piece of long work by its name, with or without the
// prefix "operations/".
func (m *Models) Operation(ctx context.Context, name string) (*Operation, error) {
	full := "operations/" + strings.TrimPrefix(name, "operations/")
	operation, err := m.operations.GetOperation(ctx, &longrunningpb.GetOperationRequest{Name: full})
	return m.begun(operation, err)
}

// ListOperations reads all long work, newest first; [WithFilter] takes
// `done = true` or `done = false`.
func (m *Models) ListOperations(ctx context.Context, opts ...ListOption) ([]*Operation, error) {
	request := &longrunningpb.ListOperationsRequest{PageSize: pageSize, Filter: newListing(opts).filter}
	return pages(func(token string) ([]*Operation, string, error) {
		request.PageToken = token
		page, err := m.operations.ListOperations(ctx, request)
		var found []*Operation
		for _, operation := range page.GetOperations() {
			found = append(found, newOperation(m.operations, operation))
		}
		return found, page.GetNextPageToken(), err
	})
}

// Wait waits until the work has ended, and gives the error that it ended with.
// When the context ends first, Wait ends with its error and the work goes on. A
// registry that restarts meanwhile is waited for. Each of tell hears of the
// state about once a second.
func (o *Operation) Wait(ctx context.Context, tell ...func(*Operation)) error {
	failures := 0
	for !o.Done {
		err := o.waitOnce(ctx, len(tell) > 0)
		switch {
		case ctx.Err() != nil:
			return newError(status.FromContextError(ctx.Err()), "")
		case err == nil:
			failures = 0
			for _, hear := range tell {
				hear(o)
			}
		case failures >= waitFailures || !hasCode(err, codes.Unavailable) && !hasCode(err, codes.DeadlineExceeded):
			return err
		default:
			wait(ctx, rand.N(min(firstBackoff<<failures, lastBackoff)))
			failures++
		}
	}
	return o.Err
}

func (o *Operation) waitOnce(ctx context.Context, telling bool) error {
	seconds := longestWait
	if telling {
		seconds = tellingWait
	}
	if ends, set := ctx.Deadline(); set && time.Until(ends) < waitSlack/50 {
		// The registry answers a moment before the deadline: do not ask again.
		wait(ctx, time.Until(ends))
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, seconds+waitSlack)
	defer cancel()
	operation, err := o.stub.WaitOperation(ctx, &longrunningpb.WaitOperationRequest{
		Name: o.Name, Timeout: durationpb.New(seconds),
	})
	if err == nil {
		o.read(operation)
	}
	return err
}

// Refresh asks how the work stands.
func (o *Operation) Refresh(ctx context.Context) error {
	operation, err := o.stub.GetOperation(ctx, &longrunningpb.GetOperationRequest{Name: o.Name})
	if err == nil {
		o.read(operation)
	}
	return err
}

// Cancel asks that the work end: Wait then gives an error with code Canceled,
// unless it was done before.
func (o *Operation) Cancel(ctx context.Context) error {
	_, err := o.stub.CancelOperation(ctx, &longrunningpb.CancelOperationRequest{Name: o.Name})
	return err
}

// Delete forgets work that has ended.
func (o *Operation) Delete(ctx context.Context) error {
	_, err := o.stub.DeleteOperation(ctx, &longrunningpb.DeleteOperationRequest{Name: o.Name})
	return err
}

func newOperation(stub longrunningpb.OperationsClient, operation *longrunningpb.Operation) *Operation {
	o := &Operation{stub: stub}
	o.read(operation)
	return o
}

func (o *Operation) read(operation *longrunningpb.Operation) {
	o.Name, o.Done = operation.GetName(), operation.GetDone()
	metadata := &registryv1.OperationMetadata{}
	if operation.GetMetadata().UnmarshalTo(metadata) == nil {
		o.Kind, o.Subject = metadata.GetKind(), metadata.GetSubject()
		o.Progress, o.Message = metadata.GetProgress(), metadata.GetMessage()
	}
	if o.Kind == "" { // a check that is long past: only its name is left
		o.Kind, _, _ = strings.Cut(strings.TrimPrefix(o.Name, "operations/"), ".")
	}
	if failure := operation.GetError(); failure != nil {
		o.Err = newError(status.FromProto(failure), "")
		return
	}
	if !o.Done {
		return
	}
	o.Progress = 1
	version, profile := &registryv1.ModelVersion{}, &registryv1.ModelVersionProfile{}
	switch response := operation.GetResponse(); {
	case response.UnmarshalTo(version) == nil:
		o.Version = version
	case response.UnmarshalTo(profile) == nil:
		o.Profile = profile
	default:
		o.Err = brokenContract("%s ended without a result", o.Name)
	}
}
