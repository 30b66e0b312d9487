package gristmill

import (
	"context"
	"crypto/rand"
	"fmt"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

// Models are the models that the registry keeps. A model is named by its id,
// "sentiment", or in full, "models/sentiment".
type Models struct {
	registry registryv1.RegistryServiceClient
}

// ListOption narrows or orders what List gives.
type ListOption func(*registryv1.ListModelsRequest)

// WithFilter lists models for which the conditions hold (AIP-160), such as
// `task = TASK_GENERATION AND labels.team = "nlp"`.
func WithFilter(filter string) ListOption {
	return func(r *registryv1.ListModelsRequest) { r.Filter = filter }
}

// WithOrderBy orders by fields, such as "create_time desc". Without it: by name.
func WithOrderBy(fields string) ListOption {
	return func(r *registryv1.ListModelsRequest) { r.OrderBy = fields }
}

// List reads all models, page by page. Archived ones are among them only when
// the filter names archive_time.
func (m *Models) List(ctx context.Context, opts ...ListOption) ([]*registryv1.Model, error) {
	request := &registryv1.ListModelsRequest{PageSize: 1000}
	for _, opt := range opts {
		opt(request)
	}
	var models []*registryv1.Model
	for {
		page, err := m.registry.ListModels(ctx, request)
		if err != nil {
			return nil, err
		}
		models = append(models, page.GetModels()...)
		if page.GetNextPageToken() == "" {
			return models, nil
		}
		request.PageToken = page.GetNextPageToken()
	}
}

// Get reads a model.
func (m *Models) Get(ctx context.Context, model string) (*registryv1.Model, error) {
	response, err := m.registry.GetModel(ctx, &registryv1.GetModelRequest{Name: modelName(model)})
	return response.GetModel(), err
}

// Resolved is the version that a reference means.
type Resolved struct {
	Version *registryv1.ModelVersion
	// ChosenBy is "version", "alias", "traffic_policy" or "live".
	ChosenBy string
}

// Resolve says which version of a model is meant now: by WithVersion or
// WithAlias, else by the traffic policy, else by the alias "live".
func (m *Models) Resolve(ctx context.Context, model string, opts ...ResolveOption) (*Resolved, error) {
	ref := newCall(opts).ref()
	ref.Model = modelID(model)
	response, err := m.registry.ResolveModel(ctx, &registryv1.ResolveModelRequest{Model: ref})
	if err != nil {
		return nil, err
	}
	return &Resolved{Version: response.GetVersion(), ChosenBy: response.GetChosenBy()}, nil
}

// WithETag promotes only if the alias has not changed since this etag was read.
func WithETag(etag string) PromoteOption {
	return promoteOption{func(c *call) { c.etag = etag }}
}

// Promote moves the alias "live", or the one of WithAlias, to a version and
// leaves its gates as they are. A gate that does not hold refuses it; see
// [IsGateUnmet].
func (m *Models) Promote(ctx context.Context, model string, version uint32, opts ...PromoteOption) (*registryv1.Alias, error) {
	call := newCall(opts)
	alias := call.ref().GetAlias()
	if alias == "" {
		alias = "live"
	}
	response, err := m.registry.SetAlias(ctx, &registryv1.SetAliasRequest{
		Alias: &registryv1.Alias{
			Name: modelName(model) + "/aliases/" + alias, Version: version, Etag: call.etag,
		},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"version"}},
		// With it a retry of a move whose answer was lost is no second move, and
		// no failure of its etag.
		RequestId: newRequestID(),
	})
	return response.GetAlias(), err
}

// newRequestID is a random UUID (version 4).
func newRequestID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: the runtime ends the process instead
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
