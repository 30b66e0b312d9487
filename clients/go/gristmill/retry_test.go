package gristmill

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

func TestPolicyCoversWhatTheContractCallsRepeatable(t *testing.T) {
	for _, c := range []struct {
		contract protoreflect.FileDescriptor
		in, out  []string
	}{
		{classifierv1.File_gristmill_classifier_v1_classifier_service_proto, []string{"Classify", "ClassifyStream", "LoadModel"}, nil},
		{generatorv1.File_gristmill_generator_v1_generator_service_proto, []string{"CountTokens", "UnloadModel"}, []string{"Generate", "GenerateStream", "GenerateBidi"}},
		{registryv1.File_gristmill_registry_v1_registry_service_proto, []string{"GetModel", "SetAlias", "Watch"}, nil},
	} {
		config := serviceConfig(c.contract)
		if !json.Valid([]byte(config)) || !strings.Contains(config, `"retryableStatusCodes":["UNAVAILABLE"]`) {
			t.Errorf("got %s", config)
		}
		for _, method := range c.in {
			if !strings.Contains(config, `"method":"`+method+`"`) {
				t.Errorf("%s is missing in %s", method, config)
			}
		}
		for _, method := range c.out {
			if strings.Contains(config, `"method":"`+method+`"`) {
				t.Errorf("%s must not be called twice", method)
			}
		}
	}
}

func TestUnavailableIsTriedAgainWhereHarmless(t *testing.T) {
	calls := 0
	client := serve(t, &classifierFake{classify: func(ctx context.Context, _ *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		if calls++; calls < 3 {
			return nil, refusal(ctx, codes.Unavailable, "DRAINING")
		}
		return &classifierv1.ClassifyResponse{Results: []*classifierv1.ItemResult{answer("a", 1)}}, nil
	}}, nil, nil)
	if _, err := client.Classify(t.Context(), Texts("a")); err != nil || calls != 3 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestLastRetryTellsWhatTheServerSaid(t *testing.T) {
	calls := 0
	client := serve(t, &classifierFake{classify: func(ctx context.Context, _ *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		calls++
		return nil, refusal(ctx, codes.Unavailable, "DRAINING")
	}}, nil, nil)
	_, err := client.Classify(t.Context(), Texts("a"))
	if e := asTyped(t, err); calls != 3 || e.Reason != "DRAINING" || e.Message != "no" || e.RequestID != "r-1" {
		t.Errorf("%d calls, %+v", calls, e)
	}
}

func TestOtherRefusalsAreNotTriedAgain(t *testing.T) {
	calls := 0
	client := serve(t, &classifierFake{classify: func(ctx context.Context, _ *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		calls++
		return nil, refusal(ctx, codes.ResourceExhausted, "QUEUE_FULL")
	}}, &generatorFake{generate: func(ctx context.Context, _ *generatorv1.GenerateRequest) (*generatorv1.GenerateResponse, error) {
		calls++
		return nil, refusal(ctx, codes.Unavailable, "DRAINING")
	}}, nil)
	if _, err := client.Classify(t.Context(), Texts("a")); !IsOverloaded(err) || calls != 1 {
		t.Errorf("Classify: %d calls, %v", calls, err)
	}
	if _, err := client.Generate(t.Context(), "a"); !IsUnavailable(err) || calls != 2 {
		t.Errorf("Generate: %d calls, %v", calls-1, err)
	}
}
