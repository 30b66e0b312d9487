package gristmill

import (
	"encoding/json"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

type object = map[string]any

// serviceConfig is gRPC's service config for the services of one contract file:
// which calls are tried again is read off the contract, so the two cannot drift.
func serviceConfig(contract protoreflect.FileDescriptor) string {
	config := object{
		"loadBalancingConfig": []object{{"round_robin": object{}}},
		// At most one retry for ten successes in the long run, so that a service
		// in trouble is not given several times its load.
		"retryThrottling": object{"maxTokens": 10, "tokenRatio": 0.1},
	}
	if names := repeatable(contract); len(names) > 0 {
		config["methodConfig"] = []object{{"name": names, "retryPolicy": object{
			"maxAttempts":       3,
			"initialBackoff":    "0.1s",
			"maxBackoff":        "2s",
			"backoffMultiplier": 2,
			// Not RESOURCE_EXHAUSTED: a full queue is told to the caller, with
			// the time after which trying again makes sense.
			"retryableStatusCodes": []string{"UNAVAILABLE"},
		}}}
	}
	text, err := json.Marshal(config)
	if err != nil {
		panic(err) // maps of strings and numbers always marshal
	}
	return string(text)
}

// repeatable names the methods that may be called twice for once.
func repeatable(contract protoreflect.FileDescriptor) []object {
	var names []object
	for i := range contract.Services().Len() {
		service := contract.Services().Get(i)
		for j := range service.Methods().Len() {
			method := service.Methods().Get(j)
			options, _ := method.Options().(*descriptorpb.MethodOptions)
			switch options.GetIdempotencyLevel() {
			case descriptorpb.MethodOptions_NO_SIDE_EFFECTS, descriptorpb.MethodOptions_IDEMPOTENT:
				names = append(names, object{"service": service.FullName(), "method": method.Name()})
			}
		}
	}
	return names
}
