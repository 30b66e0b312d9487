package gristmill

import (
	"net"
	"net/netip"
	"strings"

	"google.golang.org/grpc/resolver"
)

// listScheme marks a list of addresses, for which gRPC has no target of its own.
const listScheme = "gristmill-list"

// target is the gRPC target of an address: "a:1,b:1" becomes a list, all else
// stays as it is.
func target(address string) string {
	if strings.Contains(address, ",") {
		return listScheme + ":///" + address
	}
	return address
}

// addressList resolves a list to its addresses; names in it are looked up when
// they are dialled.
type addressList struct{}

func (addressList) Scheme() string { return listScheme }

func (addressList) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	var state resolver.State
	for _, address := range splitList(target.Endpoint()) {
		// Each server is checked against its own name, not against the list.
		addr := resolver.Address{Addr: address, ServerName: hostOf(address)}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{addr}})
	}
	return addressList{}, cc.UpdateState(state)
}

// OverrideAuthority keeps the commas out of the :authority header.
func (addressList) OverrideAuthority(target resolver.Target) string {
	return splitList(target.Endpoint())[0]
}

func (addressList) ResolveNow(resolver.ResolveNowOptions) {}
func (addressList) Close()                                {}

// isLoopback says whether calls to an address stay on this machine. What it
// does not understand does not.
func isLoopback(address string) bool {
	for _, one := range splitList(address) {
		if !isLoopbackTarget(one) {
			return false
		}
	}
	return true
}

func isLoopbackTarget(target string) bool {
	endpoint := target
	switch scheme, rest, _ := strings.Cut(target, ":"); scheme {
	case "unix", "unix-abstract":
		return true
	case "dns", "passthrough":
		// A DNS server named in the target ("dns://server/host") may answer
		// anything for "localhost": then "//server/host" is left, and refused.
		endpoint = strings.TrimPrefix(rest, "///")
	}
	host := hostOf(endpoint)
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func hostOf(endpoint string) string {
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		return strings.Trim(endpoint, "[]") // no port: gRPC adds its own
	}
	return host
}

func splitList(address string) []string {
	parts := strings.Split(address, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}
