package gristmill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	errorsv1 "github.com/gristmill/gristmill/generated/go/gristmill/errors/v1"
)

// errorDomain marks the ErrorInfo of Gristmill among those of proxies between.
const errorDomain = "gristmill"

// Error is why a call, or one item of it, failed. Get it with [errors.As]; with
// [errors.Is] it also equals context.Canceled or context.DeadlineExceeded where
// its code says so.
type Error struct {
	// Code is the gRPC status code.
	Code codes.Code
	// Reason is a name from gristmill.errors.v1.ErrorReason without its prefix,
	// such as "QUEUE_FULL". Empty: the error did not come from Gristmill; the
	// network or a proxy failed.
	Reason string
	// Message is for people.
	Message string
	// RetryAfter is when trying again makes sense. 0: the server did not say.
	RetryAfter time.Duration
	// RequestID finds the call in the logs of the server. Empty: none was sent;
	// errors of single items in a stream have none.
	RequestID string
	// FieldViolations names each wrong field of the request.
	FieldViolations []FieldViolation
	// Preconditions says which conditions do not hold, such as the gates of an
	// alias with their figures.
	Preconditions []string
	// Metadata are facts that belong to the reason, such as "models" of
	// MODEL_AMBIGUOUS or "oldest_revision" of REVISION_COMPACTED.
	Metadata map[string]string

	status *status.Status
}

// FieldViolation says what is wrong with one field.
type FieldViolation struct {
	// Field is its path in the request, such as "items[3].text.text".
	Field string
	// Description says what was expected.
	Description string
}

// Error gives all that a person needs in one line.
func (e *Error) Error() string {
	text := "gristmill: " + e.Code.String()
	if e.Reason != "" {
		text += " (" + e.Reason + ")"
	}
	text += ": " + e.Message
	for _, particular := range e.particulars() {
		if !strings.Contains(e.Message, particular) { // the message may name them
			text += "; " + particular
		}
	}
	if e.RequestID != "" {
		text += " [request " + e.RequestID + "]"
	}
	return text
}

func (e *Error) particulars() []string {
	var lines []string
	for _, v := range e.FieldViolations {
		lines = append(lines, v.Field+": "+v.Description)
	}
	return append(lines, e.Preconditions...)
}

// GRPCStatus gives the status with all its details, also to status.FromError.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Is lets errors.Is see the two errors of a context.
func (e *Error) Is(target error) bool {
	return target == context.Canceled && e.Code == codes.Canceled ||
		target == context.DeadlineExceeded && e.Code == codes.DeadlineExceeded
}

// HasReason reports whether the error was given for this reason.
func HasReason(err error, reason errorsv1.ErrorReason) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Reason == strings.TrimPrefix(reason.String(), "ERROR_REASON_")
}

// IsOverloaded reports whether a queue was full, of the server or, on a stream,
// of this consumer; RetryAfter says when to try again.
func IsOverloaded(err error) bool {
	return HasReason(err, errorsv1.ErrorReason_ERROR_REASON_QUEUE_FULL) ||
		HasReason(err, errorsv1.ErrorReason_ERROR_REASON_SLOW_CONSUMER)
}

// IsQuotaExceeded reports whether the caller's own quota is used up.
func IsQuotaExceeded(err error) bool {
	return HasReason(err, errorsv1.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED)
}

// IsGateUnmet reports whether a gate of an alias refused a version.
func IsGateUnmet(err error) bool {
	return HasReason(err, errorsv1.ErrorReason_ERROR_REASON_GATE_UNMET)
}

// IsNotFound reports whether a model, version, alias or artifact is not there.
func IsNotFound(err error) bool { return hasCode(err, codes.NotFound) }

// IsInvalid reports whether the request was wrong; FieldViolations says where.
func IsInvalid(err error) bool { return hasCode(err, codes.InvalidArgument) }

// IsUnavailable reports whether no server could answer now: it is away, is
// loading the model or is shutting down.
func IsUnavailable(err error) bool { return hasCode(err, codes.Unavailable) }

// IsDeadlineExceeded reports whether the time was too short or has passed.
func IsDeadlineExceeded(err error) bool { return hasCode(err, codes.DeadlineExceeded) }

func hasCode(err error, code codes.Code) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == code
}

func newError(st *status.Status, requestID string) *Error {
	e := &Error{Code: st.Code(), Message: st.Message(), RequestID: requestID, status: st}
	for _, detail := range st.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == errorDomain {
				e.Reason, e.Metadata = detail.GetReason(), detail.GetMetadata()
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = detail.GetRetryDelay().AsDuration()
		case *errdetails.PreconditionFailure:
			for _, v := range detail.GetViolations() {
				condition := v.GetDescription()
				if v.GetSubject() != "" {
					condition = v.GetSubject() + ": " + condition
				}
				e.Preconditions = append(e.Preconditions, condition)
			}
		case *errdetails.BadRequest:
			for _, v := range detail.GetFieldViolations() {
				e.FieldViolations = append(e.FieldViolations, FieldViolation{v.GetField(), v.GetDescription()})
			}
		}
	}
	return e
}

// brokenContract is the error for an answer that the contract does not allow.
func brokenContract(format string, args ...any) *Error {
	return newError(status.New(codes.Internal, "the server broke its contract: "+fmt.Sprintf(format, args...)), "")
}
