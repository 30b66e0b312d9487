package gristmill

import (
	"context"
	"encoding/pem"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
)

// serveTLS gives the address of a classifier whose certificate is for 127.0.0.1
// and example.com, and the file that says to trust it.
func serveTLS(t *testing.T) (address, certificate string) {
	t.Helper()
	web := httptest.NewTLSServer(nil) // for its certificate only
	defer web.Close()
	block := &pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}
	certificate = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(certificate, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&web.TLS.Certificates[0])))
	classifierv1.RegisterClassifierServiceServer(server, &classifierFake{classify: func(context.Context, *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		return &classifierv1.ClassifyResponse{Results: []*classifierv1.ItemResult{answer("a", 1)}}, nil
	}})
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return listener.Addr().String(), certificate
}

func TestTLSChecksTheNameOfEachServer(t *testing.T) {
	clearEnv(t)
	address, certificate := serveTLS(t)
	t.Setenv("GRISTMILL_CA_CERTIFICATE", certificate)
	for _, c := range []struct {
		address, serverName string
		trusted             bool
	}{
		{address, "", true},
		{strings.Replace(address, "127.0.0.1", "localhost", 1) + "," + address, "", true},
		{address, "example.com", true},
		{address, "other.example", false},
	} {
		t.Setenv("GRISTMILL_SERVER_NAME", c.serverName)
		client, err := New(WithClassifier(c.address), WithToken("secret"))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := client.Classify(t.Context(), Texts("a")); (err == nil) != c.trusted {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestTLSSettingsThatCannotWorkAreRefused(t *testing.T) {
	clearEnv(t)
	file := filepath.Join(t.TempDir(), "ca.pem")
	t.Setenv("GRISTMILL_CA_CERTIFICATE", file)
	if _, err := New(); err == nil {
		t.Error("a certificate that is not there was accepted")
	}
	if err := os.WriteFile(file, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(); err == nil {
		t.Error("a file without a certificate was accepted")
	}
	t.Setenv("GRISTMILL_CA_CERTIFICATE", "")
	t.Setenv("GRISTMILL_TLS", "1")
	if config, err := tlsFromEnv(); err != nil || config == nil {
		t.Errorf("got %v, %v", config, err)
	}
}
