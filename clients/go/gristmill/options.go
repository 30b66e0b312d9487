package gristmill

import (
	"crypto/tls"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Option sets up a [Client]. An option wins over the environment, and the
// environment over the default.
type Option func(*settings)

type settings struct {
	classifier, generator, registry string
	token                           string
	tls                             *tls.Config
	insecure                        bool
	timeout, generateTimeout        time.Duration
	dial                            []grpc.DialOption
}

// WithClassifier sets the address of the classifier. Else
// GRISTMILL_CLASSIFIER, else localhost:50052.
//
// An address is "host:port", several of them with commas between, or a gRPC
// target such as "dns:///name:port". Calls go round robin over all machines that
// it stands for.
func WithClassifier(address string) Option { return func(s *settings) { s.classifier = address } }

// WithGenerator sets the address of the generator. Else GRISTMILL_GENERATOR,
// else localhost:50053.
func WithGenerator(address string) Option { return func(s *settings) { s.generator = address } }

// WithRegistry sets the address of the registry. Else GRISTMILL_REGISTRY, else
// localhost:50051.
func WithRegistry(address string) Option { return func(s *settings) { s.registry = address } }

// WithToken sends a bearer token with every call. Else GRISTMILL_TOKEN, else
// none. [New] refuses a token that would cross a network in clear; see
// [WithTLS] and [WithInsecure].
func WithToken(token string) Option { return func(s *settings) { s.token = token } }

// WithTLS encrypts all connections. A nil config trusts the system's roots.
// Else GRISTMILL_TLS=1 does, or GRISTMILL_CA_CERTIFICATE (a PEM file to trust),
// with GRISTMILL_SERVER_NAME for the name to check; else plain text.
func WithTLS(config *tls.Config) Option {
	return func(s *settings) {
		if config == nil {
			config = &tls.Config{}
		}
		s.tls = config
	}
}

// WithInsecure lets the token go in clear to addresses that are not loopback.
// Whoever can read that network then has the token.
func WithInsecure() Option { return func(s *settings) { s.insecure = true } }

// WithTimeout sets the deadline of calls to the classifier and the registry
// whose context has none. Without it: 30 seconds; a ClassifyStream of many items
// wants more. 0: none, the server's own holds. [Client.ClassifyBidi] has none, its
// items do; [Models.Watch] and the bidi and artifact streams of the stubs never
// have one.
func WithTimeout(timeout time.Duration) Option { return func(s *settings) { s.timeout = timeout } }

// WithGenerateTimeout does the same for calls to the generator. Without it: 120
// seconds. [Client.Converse] has none, its turns do.
func WithGenerateTimeout(timeout time.Duration) Option {
	return func(s *settings) { s.generateTimeout = timeout }
}

// WithDialOptions passes options to gRPC, after the client's own: a dialer, an
// interceptor, keepalive, a stats handler.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(s *settings) { s.dial = append(s.dial, opts...) }
}

func newSettings(opts []Option) (*settings, error) {
	s := &settings{
		classifier:      fromEnv("GRISTMILL_CLASSIFIER", "localhost:50052"),
		generator:       fromEnv("GRISTMILL_GENERATOR", "localhost:50053"),
		registry:        fromEnv("GRISTMILL_REGISTRY", "localhost:50051"),
		token:           os.Getenv("GRISTMILL_TOKEN"),
		timeout:         30 * time.Second,
		generateTimeout: 120 * time.Second,
	}
	for _, opt := range opts {
		opt(s)
	}
	if s.tls == nil {
		var err error
		if s.tls, err = tlsFromEnv(); err != nil {
			return nil, err
		}
	}
	if s.token == "" || s.tls != nil || s.insecure {
		return s, nil
	}
	for _, address := range []string{s.classifier, s.generator, s.registry} {
		if !isLoopback(address) {
			return nil, fmt.Errorf("gristmill: the token would go to %s in clear: use WithTLS, or WithInsecure to allow it", address)
		}
	}
	return s, nil
}

func (s *settings) transport() credentials.TransportCredentials {
	if s.tls != nil {
		return credentials.NewTLS(s.tls)
	}
	return insecure.NewCredentials()
}

func fromEnv(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}
