package gristmill

import "context"

// bearer puts a token into the metadata of every call; the empty one nothing.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if b == "" {
		return nil, nil
	}
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity is false since New has already refused what must not
// go in clear; gRPC's own check would refuse loopback and WithInsecure too.
func (bearer) RequireTransportSecurity() bool { return false }
