package gristmill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	errorsv1 "github.com/gristmill/gristmill/generated/go/gristmill/errors/v1"
	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
)

func classifyFailing(t *testing.T, fail func(context.Context) error) error {
	t.Helper()
	client := serve(t, &classifierFake{classify: func(ctx context.Context, _ *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		return nil, fail(ctx)
	}}, nil, nil)
	_, err := client.Classify(t.Context(), Texts("a"))
	return err
}

func asTyped(t *testing.T, err error) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("not an *Error: %T %v", err, err)
	}
	return e
}

func TestErrorCarriesEveryDetail(t *testing.T) {
	err := classifyFailing(t, func(ctx context.Context) error {
		return refusal(ctx, codes.ResourceExhausted, "QUEUE_FULL",
			&errdetails.RetryInfo{RetryDelay: durationpb.New(250 * time.Millisecond)},
			&errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{{Description: "accuracy 0.8 < 0.9"}}},
			&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "items", Description: "too many"}}})
	})
	e := asTyped(t, fmt.Errorf("wrapped: %w", err))
	if e.Code != codes.ResourceExhausted || e.Reason != "QUEUE_FULL" || e.Message != "no" || e.RequestID != "r-1" {
		t.Errorf("got %+v", e)
	}
	if e.RetryAfter != 250*time.Millisecond || e.Metadata["models"] != "iris,sentiment" {
		t.Errorf("got %v, %v", e.RetryAfter, e.Metadata)
	}
	if len(e.FieldViolations) != 1 || e.FieldViolations[0] != (FieldViolation{"items", "too many"}) {
		t.Errorf("got %v", e.FieldViolations)
	}
	want := "gristmill: ResourceExhausted (QUEUE_FULL): no; items: too many; accuracy 0.8 < 0.9 [request r-1]"
	if e.Error() != want {
		t.Errorf("got  %s\nwant %s", e, want)
	}
	if status.Code(err) != codes.ResourceExhausted || len(status.Convert(err).Details()) != 4 {
		t.Errorf("the status is lost: %v", status.Convert(err))
	}
}

func TestErrorDoesNotRepeatItsMessage(t *testing.T) {
	e := &Error{Code: codes.InvalidArgument, Message: "items: too many", FieldViolations: []FieldViolation{{"items", "too many"}}}
	if want := "gristmill: InvalidArgument: items: too many"; e.Error() != want {
		t.Errorf("got %s", e)
	}
}

func TestErrorOfAnotherDomainHasNoReason(t *testing.T) {
	e := asTyped(t, classifyFailing(t, func(context.Context) error {
		st, _ := status.New(codes.PermissionDenied, "blocked").WithDetails(&errdetails.ErrorInfo{Domain: "proxy.example", Reason: "BLOCKED"})
		return st.Err()
	}))
	if e.Reason != "" || e.RequestID != "" || e.Code != codes.PermissionDenied {
		t.Errorf("got %+v", e)
	}
}

func TestHelpersReadCodeAndReason(t *testing.T) {
	cases := []struct {
		code   codes.Code
		reason string
		is     func(error) bool
	}{
		{codes.ResourceExhausted, "QUEUE_FULL", IsOverloaded},
		{codes.ResourceExhausted, "SLOW_CONSUMER", IsOverloaded},
		{codes.ResourceExhausted, "QUOTA_EXCEEDED", IsQuotaExceeded},
		{codes.FailedPrecondition, "GATE_UNMET", IsGateUnmet},
		{codes.NotFound, "MODEL_NOT_FOUND", IsNotFound},
		{codes.InvalidArgument, "INVALID_FIELD", IsInvalid},
		{codes.Unavailable, "DRAINING", IsUnavailable},
		{codes.DeadlineExceeded, "DEADLINE_TOO_SHORT", IsDeadlineExceeded},
	}
	for _, c := range cases {
		err := asError(refusal(nil, c.code, c.reason), nil)
		if !c.is(err) || c.is(nil) || c.is(errors.New("other")) {
			t.Errorf("%s is not recognised", c.reason)
		}
	}
	quota := asError(refusal(nil, codes.ResourceExhausted, "QUOTA_EXCEEDED"), nil)
	if IsOverloaded(quota) || !HasReason(quota, errorsv1.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED) {
		t.Error("a quota is not an overload")
	}
}

func TestContextErrorsAreRecognised(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	client := serve(t, &classifierFake{classify: func(ctx context.Context, _ *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		return nil, hang(ctx)
	}}, nil, nil)
	late, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := client.Classify(late, Texts("a")); !errors.Is(err, context.DeadlineExceeded) || !IsDeadlineExceeded(err) {
		t.Errorf("got %v", err)
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, err := client.Classify(gone, Texts("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestStreamErrorCarriesRequestID(t *testing.T) {
	client := serve(t, nil, &generatorFake{stream: func(_ *generatorv1.GenerateStreamRequest, out grpc.ServerStreamingServer[generatorv1.GenerateStreamResponse]) error {
		out.SetTrailer(metadata.Pairs("x-request-id", "r-2"))
		return refusal(nil, codes.NotFound, "MODEL_NOT_LOADED")
	}}, nil)
	_, err := client.Stream(t.Context(), "a")
	if e := asTyped(t, err); e.RequestID != "r-2" || e.Reason != "MODEL_NOT_LOADED" {
		t.Errorf("got %+v", e)
	}
}

func TestUnreachableServiceIsUnavailable(t *testing.T) {
	clearEnv(t)
	client, err := New(WithClassifier("127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.Classify(t.Context(), Texts("a"))
	if !IsUnavailable(err) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("got %v", err)
	}
}
