package gristmill

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// These two interceptors are the one place where a gRPC error becomes an *Error.

func unaryErrors(ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	var trailer metadata.MD
	err := invoke(ctx, method, request, reply, cc, append(opts, grpc.Trailer(&trailer))...)
	return asError(err, trailer)
}

func streamErrors(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, asError(err, nil)
	}
	return &errorStream{stream}, nil
}

type errorStream struct{ grpc.ClientStream }

func (s *errorStream) SendMsg(message any) error {
	// The trailer may be asked for only once receiving has ended.
	return asError(s.ClientStream.SendMsg(message), nil)
}

func (s *errorStream) RecvMsg(message any) error {
	err := s.ClientStream.RecvMsg(message)
	if err == nil {
		return nil
	}
	return asError(err, s.Trailer())
}

func asError(err error, trailer metadata.MD) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err // the end of a stream is no failure
	}
	return newError(statusOf(err), requestID(trailer))
}

// statusOf finds the status as the server sent it. status.Convert would put the
// text that gRPC wraps around it after the last retry into the message.
func statusOf(err error) *status.Status {
	var sent interface{ GRPCStatus() *status.Status }
	if errors.As(err, &sent) {
		return sent.GRPCStatus()
	}
	return status.Convert(err)
}

func requestID(trailer metadata.MD) string {
	if values := trailer.Get("x-request-id"); len(values) > 0 {
		return values[0]
	}
	return ""
}
