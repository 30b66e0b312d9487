package gristmill

import (
	"errors"
	"fmt"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/reflect/protoreflect"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

// maxReceiveBytes lets a full answer through: 1,024 items with the
// probabilities of 10,000 labels each are 40 MiB, gRPC's own limit is 4.
const maxReceiveBytes = 64 << 20

// Client speaks to the three services. It is safe for concurrent use, connects
// when it is first used and holds one connection for each address of a service.
type Client struct {
	classifier  classifierv1.ClassifierServiceClient
	generator   generatorv1.GeneratorServiceClient
	registry    registryv1.RegistryServiceClient
	operations  longrunningpb.OperationsClient
	connections []*grpc.ClientConn
	// Of calls that are given none; 0: the server's own.
	timeout, generateTimeout time.Duration
}

// New makes a client. It fails on settings that cannot work, not on a service
// that is away: only calls reach out.
func New(opts ...Option) (*Client, error) {
	s, err := newSettings(opts)
	if err != nil {
		return nil, err
	}
	c := &Client{timeout: s.timeout, generateTimeout: s.generateTimeout}
	classifier, err := c.connect(s, s.classifier, classifierv1.File_gristmill_classifier_v1_classifier_service_proto)
	if err != nil {
		return nil, err
	}
	generator, err := c.connect(s, s.generator, generatorv1.File_gristmill_generator_v1_generator_service_proto)
	if err != nil {
		return nil, err
	}
	registry, err := c.connect(s, s.registry, registryv1.File_gristmill_registry_v1_registry_service_proto)
	if err != nil {
		return nil, err
	}
	c.classifier = classifierv1.NewClassifierServiceClient(classifier)
	c.generator = generatorv1.NewGeneratorServiceClient(generator)
	c.registry = registryv1.NewRegistryServiceClient(registry)
	c.operations = longrunningpb.NewOperationsClient(registry)
	return c, nil
}

// Close ends all connections; calls under way fail with code Canceled.
func (c *Client) Close() error {
	var failures []error
	for _, connection := range c.connections {
		failures = append(failures, connection.Close())
	}
	return errors.Join(failures...)
}

// Classifier gives the generated stub of the classifier.
func (c *Client) Classifier() classifierv1.ClassifierServiceClient { return c.classifier }

// Generator gives the generated stub of the generator.
func (c *Client) Generator() generatorv1.GeneratorServiceClient { return c.generator }

// Registry gives the generated stub of the registry.
func (c *Client) Registry() registryv1.RegistryServiceClient { return c.registry }

// Models gives the models of the registry.
func (c *Client) Models() *Models { return &Models{registry: c.registry, operations: c.operations} }

func (c *Client) connect(s *settings, address string, contract protoreflect.FileDescriptor) (*grpc.ClientConn, error) {
	deadlines := &deadlines{s.timeout, s.generateTimeout}
	connection, err := grpc.NewClient(target(address), append([]grpc.DialOption{
		grpc.WithTransportCredentials(s.transport()),
		grpc.WithPerRPCCredentials(bearer(s.token)),
		grpc.WithDefaultServiceConfig(serviceConfig(contract)),
		// The policy is the contract's: no TXT record may replace it, and no
		// look-up of one may delay the first call.
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceiveBytes)),
		grpc.WithChainUnaryInterceptor(deadlines.unary, unaryErrors),
		grpc.WithChainStreamInterceptor(deadlines.stream, streamErrors),
		grpc.WithResolvers(addressList{}),
		// Finds a dead peer under a silent stream; the servers allow a ping each
		// 10 seconds.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.WithUserAgent("gristmill-go"),
	}, s.dial...)...)
	if err != nil {
		c.Close() // of those already made; they hold nothing that could fail
		return nil, fmt.Errorf("gristmill: address %q: %w", address, err)
	}
	c.connections = append(c.connections, connection)
	return connection, nil
}
