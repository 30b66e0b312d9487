package gristmill

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

func TestOptionWinsOverEnvironmentOverDefault(t *testing.T) {
	clearEnv(t)
	t.Setenv("GRISTMILL_GENERATOR", "env:1")
	t.Setenv("GRISTMILL_REGISTRY", "env:2")
	s, err := newSettings([]Option{WithRegistry("option:3")})
	if err != nil || s.classifier != "localhost:50052" || s.generator != "env:1" || s.registry != "option:3" {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestTokenIsNotSentInClearOverANetwork(t *testing.T) {
	clearEnv(t)
	remote := WithClassifier("models.example:50052")
	if _, err := New(remote, WithToken("secret")); err == nil {
		t.Error("the token would go in clear")
	}
	t.Setenv("GRISTMILL_TOKEN", "secret")
	if _, err := New(remote); err == nil {
		t.Error("the token of the environment would go in clear")
	}
	for name, opts := range map[string][]Option{
		"loopback": nil,
		"TLS":      {remote, WithTLS(nil)},
		"insecure": {remote, WithInsecure()},
		"no token": {remote, WithToken("")},
	} {
		client, err := New(opts...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		client.Close()
	}
}

func TestLoopbackAddresses(t *testing.T) {
	for address, want := range map[string]bool{
		"localhost:50052":                     true,
		"LOCALHOST":                           true,
		"127.0.0.1:50052":                     true,
		"127.8.9.1":                           true,
		"[::1]:50052":                         true,
		"[::ffff:127.0.0.1]:1":                true,
		"dns:///localhost:1":                  true,
		"dns:localhost:1":                     true,
		"passthrough:///127.0.0.1:1":          true,
		"unix:///run/gristmill.sock":          true,
		"127.0.0.1:1, [::1]:2":                true,
		"127.0.0.1:1,10.0.0.1:2":              false,
		"10.0.0.1:50052":                      false,
		"localhost.example:50052":             false,
		"localhost@evil.example:1":            false,
		"dns://evil.example/localhost:1":      false,
		"dns:///evil.example:1":               false,
		"passthrough:///evil.example":         false,
		"xds:///localhost:1":                  false,
		"[::]:50052":                          false,
		"0.0.0.0:50052":                       false,
		"":                                    false,
		"evil.example:1,passthrough:///[::1]": false,
	} {
		if got := isLoopback(address); got != want {
			t.Errorf("%q: %v", address, got)
		}
	}
}

func TestTokenTravelsAsBearer(t *testing.T) {
	var sent []string
	client := serve(t, &classifierFake{classify: func(ctx context.Context, _ *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		sent = metadata.ValueFromIncomingContext(ctx, "authorization")
		return &classifierv1.ClassifyResponse{Results: []*classifierv1.ItemResult{answer("a", 1)}}, nil
	}}, nil, nil, WithToken("secret"))
	if _, err := client.Classify(t.Context(), Texts("a")); err != nil || len(sent) != 1 || sent[0] != "Bearer secret" {
		t.Errorf("sent %v, %v", sent, err)
	}
}

func TestSeveralAddressesShareTheCalls(t *testing.T) {
	clearEnv(t)
	addresses, seen := "", map[string]int{}
	hit := make(chan string, 100)
	for _, name := range []string{"first", "second"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		classifierv1.RegisterClassifierServiceServer(server, &classifierFake{classify: func(context.Context, *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
			hit <- name
			return &classifierv1.ClassifyResponse{Results: []*classifierv1.ItemResult{answer("a", 1)}}, nil
		}})
		go server.Serve(listener)
		t.Cleanup(server.Stop)
		addresses += ", " + listener.Addr().String()
	}
	client, err := New(WithClassifier(addresses[2:]), WithToken("secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for end := time.Now().Add(10 * time.Second); len(seen) < 2 && time.Now().Before(end); {
		if _, err := client.Classify(t.Context(), Texts("a")); err != nil {
			t.Fatal(err)
		}
		seen[<-hit]++
	}
	if len(seen) != 2 {
		t.Errorf("the calls went to %v", seen)
	}
}

func TestStreamsWithoutEndHaveNoDefaultDeadline(t *testing.T) {
	d := &deadlines{usual: time.Second, generate: time.Minute}
	bidi, down := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, &grpc.StreamDesc{ServerStreams: true}
	for _, c := range []struct {
		method string
		desc   *grpc.StreamDesc
		want   time.Duration
	}{
		{registryv1.RegistryService_Watch_FullMethodName, down, 0},
		{registryv1.RegistryService_UploadArtifact_FullMethodName, bidi, 0},
		{generatorv1.GeneratorService_GenerateBidi_FullMethodName, bidi, 0},
		{generatorv1.GeneratorService_GenerateStream_FullMethodName, down, time.Minute},
		{classifierv1.ClassifierService_ClassifyStream_FullMethodName, down, time.Second},
		{registryv1.RegistryService_GetModel_FullMethodName, &grpc.StreamDesc{}, time.Second},
	} {
		if got := d.timeout(c.method, c.desc); got != c.want {
			t.Errorf("%s: %v", c.method, got)
		}
	}
}
