package gristmill

import (
	"context"
	"regexp"
	"testing"

	"google.golang.org/grpc/codes"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

func TestListReadsEveryPage(t *testing.T) {
	client := serve(t, nil, nil, &registryFake{list: func(_ context.Context, r *registryv1.ListModelsRequest) (*registryv1.ListModelsResponse, error) {
		if r.Filter != "task = TASK_GENERATION" || r.OrderBy != "create_time" {
			t.Errorf("got %v", r)
		}
		if r.PageToken == "" {
			return &registryv1.ListModelsResponse{Models: []*registryv1.Model{{Name: "models/a"}}, NextPageToken: "2"}, nil
		}
		return &registryv1.ListModelsResponse{Models: []*registryv1.Model{{Name: "models/b"}}}, nil
	}})
	models, err := client.Models().List(t.Context(), WithFilter("task = TASK_GENERATION"), WithOrderBy("create_time"))
	if err != nil || len(models) != 2 || models[1].GetName() != "models/b" {
		t.Errorf("got %v, %v", models, err)
	}
}

func TestResolveNamesTheModel(t *testing.T) {
	client := serve(t, nil, nil, &registryFake{resolve: func(_ context.Context, r *registryv1.ResolveModelRequest) (*registryv1.ResolveModelResponse, error) {
		if r.Model.GetModel() != "sentiment" || r.Model.GetAlias() != "candidate" {
			t.Errorf("got %v", r)
		}
		return &registryv1.ResolveModelResponse{Version: &registryv1.ModelVersion{Version: 3}, ChosenBy: "alias"}, nil
	}})
	resolved, err := client.Models().Resolve(t.Context(), "sentiment", WithAlias("candidate"))
	if err != nil || resolved.Version.GetVersion() != 3 || resolved.ChosenBy != "alias" {
		t.Errorf("got %v, %v", resolved, err)
	}
}

func TestPromoteMovesTheAliasAndKeepsItsGates(t *testing.T) {
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	for _, c := range []struct {
		opts []PromoteOption
		name string
		etag string
	}{
		{nil, "models/sentiment/aliases/live", ""},
		{[]PromoteOption{WithAlias("candidate"), WithETag("e")}, "models/sentiment/aliases/candidate", "e"},
	} {
		client := serve(t, nil, nil, &registryFake{setAlias: func(_ context.Context, r *registryv1.SetAliasRequest) (*registryv1.SetAliasResponse, error) {
			if paths := r.GetUpdateMask().GetPaths(); len(paths) != 1 || paths[0] != "version" || !uuid.MatchString(r.GetRequestId()) {
				t.Errorf("got %v", r)
			}
			return &registryv1.SetAliasResponse{Alias: r.GetAlias()}, nil
		}})
		alias, err := client.Models().Promote(t.Context(), "sentiment", 4, c.opts...)
		if err != nil || alias.GetName() != c.name || alias.GetVersion() != 4 || alias.GetEtag() != c.etag {
			t.Errorf("got %v, %v", alias, err)
		}
	}
}

func TestPromoteToldOfAGate(t *testing.T) {
	client := serve(t, nil, nil, &registryFake{setAlias: func(ctx context.Context, _ *registryv1.SetAliasRequest) (*registryv1.SetAliasResponse, error) {
		return nil, refusal(ctx, codes.FailedPrecondition, "GATE_UNMET")
	}})
	if alias, err := client.Models().Promote(t.Context(), "sentiment", 4); alias != nil || !IsGateUnmet(err) {
		t.Errorf("got %v, %v", alias, err)
	}
}
