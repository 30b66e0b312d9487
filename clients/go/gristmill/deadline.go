package gristmill

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
)

// deadlines gives a deadline to calls whose context has none.
type deadlines struct{ usual, generate time.Duration }

func (d *deadlines) unary(ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := d.apply(ctx, method, &grpc.StreamDesc{})
	defer cancel()
	return invoke(ctx, method, request, reply, cc, opts...)
}

func (d *deadlines) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, cancel := d.apply(ctx, method, desc)
	stream, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		cancel()
		return nil, err
	}
	return &timedStream{stream, cancel}, nil
}

func (d *deadlines) apply(ctx context.Context, method string, desc *grpc.StreamDesc) (context.Context, context.CancelFunc) {
	timeout := d.timeout(method, desc)
	if _, set := ctx.Deadline(); set || timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, timeout)
}

func (d *deadlines) timeout(method string, desc *grpc.StreamDesc) time.Duration {
	switch {
	case desc.ClientStreams, desc.ServerStreams && strings.HasPrefix(method, "/gristmill.registry."):
		return 0 // conversations, watches and transfers last as long as they last
	case strings.HasPrefix(method, "/gristmill.generator."):
		return d.generate
	}
	return d.usual
}

// timedStream frees the timer of its deadline when the stream has ended.
type timedStream struct {
	grpc.ClientStream
	cancel context.CancelFunc
}

func (s *timedStream) RecvMsg(message any) error {
	err := s.ClientStream.RecvMsg(message)
	if err != nil {
		s.cancel()
	}
	return err
}
