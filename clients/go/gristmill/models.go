package gristmill

import (
	"context"
	"crypto/rand"
	"fmt"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

// Models are the models that the registry keeps. A model is named by its id,
// "sentiment", or in full, "models/sentiment".
type Models struct {
	registry   registryv1.RegistryServiceClient
	operations longrunningpb.OperationsClient
}

// listing is what options of a list say.
type listing struct{ filter, orderBy string }

// ListOption narrows or orders what List, Versions and ListOperations give.
type ListOption func(*listing)

// WithFilter lists that for which the conditions hold (AIP-160), such as
// `task = TASK_GENERATION AND labels.team = "nlp"` for models, `state = READY`
// for versions; `done = false` is all that operations know.
func WithFilter(filter string) ListOption {
	return func(l *listing) { l.filter = filter }
}

// WithOrderBy orders models or versions by fields, such as "create_time desc".
// Without it: models by name, versions newest first.
func WithOrderBy(fields string) ListOption {
	return func(l *listing) { l.orderBy = fields }
}

func newListing(opts []ListOption) *listing {
	l := &listing{}
	for _, opt := range opts {
		opt(l)
	}
	return l
}

// List reads all models, page by page. Archived ones are among them only when
// the filter names archive_time.
func (m *Models) List(ctx context.Context, opts ...ListOption) ([]*registryv1.Model, error) {
	l := newListing(opts)
	request := &registryv1.ListModelsRequest{PageSize: pageSize, Filter: l.filter, OrderBy: l.orderBy}
	return pages(func(token string) ([]*registryv1.Model, string, error) {
		request.PageToken = token
		page, err := m.registry.ListModels(ctx, request)
		return page.GetModels(), page.GetNextPageToken(), err
	})
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

// WithGates replaces what must hold of a version before the alias moves to it,
// also now: see [AtLeast], [AtMost], [AtLeastHolder] and [AtMostHolder]. With
// none it removes all gates; without this option they stay as they are.
func WithGates(gates ...*registryv1.Gate) PromoteOption {
	return promoteOption{func(c *call) { c.gates, c.setGates = gates, true }}
}

// Promote moves the alias "live", or the one of WithAlias, to a version. A gate
// that does not hold refuses it; see [IsGateUnmet].
func (m *Models) Promote(ctx context.Context, model string, version uint32, opts ...PromoteOption) (*registryv1.Alias, error) {
	call := newCall(opts)
	alias := call.ref().GetAlias()
	if alias == "" {
		alias = "live"
	}
	mask := []string{"version"}
	if call.setGates {
		mask = append(mask, "gates")
	}
	response, err := m.registry.SetAlias(ctx, &registryv1.SetAliasRequest{
		Alias: &registryv1.Alias{
			Name: aliasName(model, alias), Version: version, Gates: call.gates, Etag: call.etag,
		},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: mask},
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
