package gristmill

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strconv"
)

// tlsFromEnv reads the variables that the Python client reads too, so that one
// environment serves both. Nil: plain text.
func tlsFromEnv() (*tls.Config, error) {
	on, _ := strconv.ParseBool(os.Getenv("GRISTMILL_TLS"))
	certificate := os.Getenv("GRISTMILL_CA_CERTIFICATE")
	if !on && certificate == "" {
		return nil, nil
	}
	config := &tls.Config{ServerName: os.Getenv("GRISTMILL_SERVER_NAME")}
	if certificate == "" {
		return config, nil
	}
	pem, err := os.ReadFile(certificate)
	if err != nil {
		return nil, fmt.Errorf("gristmill: GRISTMILL_CA_CERTIFICATE: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("gristmill: GRISTMILL_CA_CERTIFICATE: no certificate in %s", certificate)
	}
	return config, nil
}
