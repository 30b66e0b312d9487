package gristmill

import (
	"context"
	"net"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/protoadapt"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

type conversationServer = grpc.BidiStreamingServer[generatorv1.GenerateBidiRequest, generatorv1.GenerateBidiResponse]

type bidiServer = grpc.BidiStreamingServer[classifierv1.ClassifyBidiRequest, classifierv1.ClassifyBidiResponse]

// The fakes answer with what a test sets.
type classifierFake struct {
	classifierv1.UnimplementedClassifierServiceServer
	classify func(context.Context, *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error)
	stream   func(*classifierv1.ClassifyStreamRequest, grpc.ServerStreamingServer[classifierv1.ClassifyStreamResponse]) error
	bidi     func(bidiServer) error
}

func (f *classifierFake) ClassifyBidi(stream bidiServer) error { return f.bidi(stream) }

func (f *classifierFake) Classify(ctx context.Context, r *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
	return f.classify(ctx, r)
}

func (f *classifierFake) ClassifyStream(r *classifierv1.ClassifyStreamRequest, out grpc.ServerStreamingServer[classifierv1.ClassifyStreamResponse]) error {
	return f.stream(r, out)
}

type generatorFake struct {
	generatorv1.UnimplementedGeneratorServiceServer
	generate func(context.Context, *generatorv1.GenerateRequest) (*generatorv1.GenerateResponse, error)
	stream   func(*generatorv1.GenerateStreamRequest, grpc.ServerStreamingServer[generatorv1.GenerateStreamResponse]) error
	bidi     func(conversationServer) error
}

func (f *generatorFake) GenerateBidi(stream conversationServer) error { return f.bidi(stream) }

func (f *generatorFake) Generate(ctx context.Context, r *generatorv1.GenerateRequest) (*generatorv1.GenerateResponse, error) {
	return f.generate(ctx, r)
}

func (f *generatorFake) GenerateStream(r *generatorv1.GenerateStreamRequest, out grpc.ServerStreamingServer[generatorv1.GenerateStreamResponse]) error {
	return f.stream(r, out)
}

type registryFake struct {
	registryv1.UnimplementedRegistryServiceServer
	list     func(context.Context, *registryv1.ListModelsRequest) (*registryv1.ListModelsResponse, error)
	resolve  func(context.Context, *registryv1.ResolveModelRequest) (*registryv1.ResolveModelResponse, error)
	setAlias func(context.Context, *registryv1.SetAliasRequest) (*registryv1.SetAliasResponse, error)
	watch    func(*registryv1.WatchRequest, grpc.ServerStreamingServer[registryv1.WatchResponse]) error
}

func (f *registryFake) ListModels(ctx context.Context, r *registryv1.ListModelsRequest) (*registryv1.ListModelsResponse, error) {
	return f.list(ctx, r)
}

func (f *registryFake) ResolveModel(ctx context.Context, r *registryv1.ResolveModelRequest) (*registryv1.ResolveModelResponse, error) {
	return f.resolve(ctx, r)
}

func (f *registryFake) SetAlias(ctx context.Context, r *registryv1.SetAliasRequest) (*registryv1.SetAliasResponse, error) {
	return f.setAlias(ctx, r)
}

func (f *registryFake) Watch(r *registryv1.WatchRequest, out grpc.ServerStreamingServer[registryv1.WatchResponse]) error {
	return f.watch(r, out)
}

// serve starts the fakes and gives a client of them.
func serve(t *testing.T, classifier *classifierFake, generator *generatorFake, registry *registryFake, opts ...Option) *Client {
	t.Helper()
	clearEnv(t)
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	if classifier != nil {
		classifierv1.RegisterClassifierServiceServer(server, classifier)
	}
	if generator != nil {
		generatorv1.RegisterGeneratorServiceServer(server, generator)
	}
	if registry != nil {
		registryv1.RegisterRegistryServiceServer(server, registry)
	}
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	dial := WithDialOptions(grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return listener.DialContext(ctx)
	}))
	const target = "passthrough:///localhost"
	client, err := New(append([]Option{WithClassifier(target), WithGenerator(target), WithRegistry(target), dial}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// clearEnv keeps the settings of whoever runs the tests out of them.
func clearEnv(t *testing.T) {
	t.Helper()
	for _, name := range []string{"CLASSIFIER", "GENERATOR", "REGISTRY", "TOKEN", "TLS", "CA_CERTIFICATE", "SERVER_NAME"} {
		t.Setenv("GRISTMILL_"+name, "")
	}
}

// refusal is a status as the services send it, with the request id in the
// trailer of the call.
func refusal(ctx context.Context, code codes.Code, reason string, details ...protoadapt.MessageV1) error {
	if ctx != nil {
		grpc.SetTrailer(ctx, metadata.Pairs("x-request-id", "r-1"))
	}
	info := &errdetails.ErrorInfo{Domain: "gristmill", Reason: reason, Metadata: map[string]string{"models": "iris,sentiment"}}
	st, err := status.New(code, "no").WithDetails(append([]protoadapt.MessageV1{info}, details...)...)
	if err != nil {
		panic(err)
	}
	return st.Err()
}
