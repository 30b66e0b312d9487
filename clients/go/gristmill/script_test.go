package gristmill

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// script answers unary calls by the names of their methods, and remembers the
// requests. A nil answer is an empty message.
type script struct {
	answers map[string]func(ctx context.Context, request proto.Message) (proto.Message, error)

	mu       sync.Mutex
	requests map[string][]proto.Message
}

// always is an answer that is always the same.
func always(message proto.Message) func(context.Context, proto.Message) (proto.Message, error) {
	return func(context.Context, proto.Message) (proto.Message, error) { return message, nil }
}

// last is the last request to a method.
func last[T proto.Message](t *testing.T, s *script, method string) T {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.requests[method]
	if len(asked) == 0 {
		t.Fatalf("%s was not called", method)
	}
	return asked[len(asked)-1].(T)
}

func (s *script) handle(_ any, stream grpc.ServerStream) error {
	path, _ := grpc.MethodFromServerStream(stream)
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(parts[0] + "." + parts[1]))
	if err != nil {
		return status.Error(codes.Unimplemented, path)
	}
	method := found.(protoreflect.MethodDescriptor)
	request := blank(method.Input())
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	s.mu.Lock()
	s.requests[parts[1]] = append(s.requests[parts[1]], request)
	s.mu.Unlock()
	reply := s.answers[parts[1]]
	if reply == nil {
		return status.Error(codes.Unimplemented, path)
	}
	message, err := reply(stream.Context(), request)
	if err != nil {
		return err
	}
	if message == nil {
		message = blank(method.Output())
	}
	return stream.SendMsg(message)
}

func blank(descriptor protoreflect.MessageDescriptor) proto.Message {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		panic(err)
	}
	return kind.New().Interface()
}

// serveScript starts a registry that plays a script and gives a client of it.
func serveScript(t *testing.T, answers map[string]func(context.Context, proto.Message) (proto.Message, error)) (*Models, *script) {
	t.Helper()
	clearEnv(t)
	s := &script{answers: answers, requests: map[string][]proto.Message{}}
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.UnknownServiceHandler(s.handle))
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	client, err := New(WithRegistry("passthrough:///localhost"), WithDialOptions(grpc.WithContextDialer(
		func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) })))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client.Models(), s
}
