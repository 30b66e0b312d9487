package gristmill

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

// Versions reads all versions of a model, page by page, newest first.
func (m *Models) Versions(ctx context.Context, model string, opts ...ListOption) ([]*registryv1.ModelVersion, error) {
	l := newListing(opts)
	request := &registryv1.ListModelVersionsRequest{
		Parent: modelName(model), PageSize: pageSize, Filter: l.filter, OrderBy: l.orderBy,
	}
	return pages(func(token string) ([]*registryv1.ModelVersion, string, error) {
		request.PageToken = token
		page, err := m.registry.ListModelVersions(ctx, request)
		return page.GetVersions(), page.GetNextPageToken(), err
	})
}

// Version reads a version.
func (m *Models) Version(ctx context.Context, model string, version uint32) (*registryv1.ModelVersion, error) {
	response, err := m.registry.GetModelVersion(ctx, &registryv1.GetModelVersionRequest{Name: versionName(model, version)})
	return response.GetVersion(), err
}

// BatchGet reads up to 100 models, in the order of their names; it fails as a
// whole if one is missing.
func (m *Models) BatchGet(ctx context.Context, models ...string) ([]*registryv1.Model, error) {
	request := &registryv1.BatchGetModelsRequest{}
	for _, model := range models {
		request.Names = append(request.Names, modelName(model))
	}
	response, err := m.registry.BatchGetModels(ctx, request)
	return response.GetModels(), err
}

// BatchGetVersions reads up to 100 versions of a model, in that order; it fails
// as a whole if one is missing.
func (m *Models) BatchGetVersions(ctx context.Context, model string, versions ...uint32) ([]*registryv1.ModelVersion, error) {
	request := &registryv1.BatchGetModelVersionsRequest{Parent: modelName(model)}
	for _, version := range versions {
		request.Names = append(request.Names, versionName(model, version))
	}
	response, err := m.registry.BatchGetModelVersions(ctx, request)
	return response.GetVersions(), err
}

// update is what options of an update say.
type update struct {
	description string
	labels      map[string]string
	metrics     map[string]float64
	mask        []string
}

// UpdateOption says what Update and UpdateVersion replace.
type UpdateOption func(*update)

// WithDescription replaces the description.
func WithDescription(description string) UpdateOption {
	return func(u *update) { u.description, u.mask = description, append(u.mask, "description") }
}

// WithLabels replaces all labels.
func WithLabels(labels map[string]string) UpdateOption {
	return func(u *update) { u.labels, u.mask = labels, append(u.mask, "labels") }
}

// WithMetrics replaces all metrics, which only a version has.
func WithMetrics(metrics map[string]float64) UpdateOption {
	return func(u *update) { u.metrics, u.mask = metrics, append(u.mask, "metrics") }
}

func newUpdate(opts []UpdateOption) (*update, error) {
	u := &update{}
	for _, opt := range opts {
		opt(u)
	}
	if len(u.mask) == 0 {
		// An empty mask would mean all fields, and empty them.
		return nil, newError(status.New(codes.InvalidArgument, "name at least one field to update"), "")
	}
	return u, nil
}

// Update changes the description or the labels of a model.
func (m *Models) Update(ctx context.Context, model string, opts ...UpdateOption) (*registryv1.Model, error) {
	u, err := newUpdate(opts)
	if err != nil {
		return nil, err
	}
	response, err := m.registry.UpdateModel(ctx, &registryv1.UpdateModelRequest{
		Model:      &registryv1.Model{Name: modelName(model), Description: u.description, Labels: u.labels},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: u.mask},
		RequestId:  newRequestID(),
	})
	return response.GetModel(), err
}

// UpdateVersion changes the description, the labels or the metrics of a version.
func (m *Models) UpdateVersion(ctx context.Context, model string, version uint32, opts ...UpdateOption) (*registryv1.ModelVersion, error) {
	u, err := newUpdate(opts)
	if err != nil {
		return nil, err
	}
	response, err := m.registry.UpdateModelVersion(ctx, &registryv1.UpdateModelVersionRequest{
		Version: &registryv1.ModelVersion{
			Name: versionName(model, version), Description: u.description, Labels: u.labels, Metrics: u.metrics,
		},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: u.mask},
		RequestId:  newRequestID(),
	})
	return response.GetVersion(), err
}

// Archive puts a model away: it keeps everything and is served no more.
func (m *Models) Archive(ctx context.Context, model string) (*registryv1.Model, error) {
	return m.archive(ctx, model, false)
}

// Restore takes an archived model back.
func (m *Models) Restore(ctx context.Context, model string) (*registryv1.Model, error) {
	return m.archive(ctx, model, true)
}

// ArchiveVersion puts a version away. It is refused while an alias or a traffic
// policy points to it.
func (m *Models) ArchiveVersion(ctx context.Context, model string, version uint32) (*registryv1.ModelVersion, error) {
	return m.archiveVersion(ctx, model, version, false)
}

// RestoreVersion takes an archived version back.
func (m *Models) RestoreVersion(ctx context.Context, model string, version uint32) (*registryv1.ModelVersion, error) {
	return m.archiveVersion(ctx, model, version, true)
}

func (m *Models) archive(ctx context.Context, model string, restore bool) (*registryv1.Model, error) {
	response, err := m.registry.ArchiveModel(ctx, &registryv1.ArchiveModelRequest{
		Name: modelName(model), Restore: restore, RequestId: newRequestID(),
	})
	return response.GetModel(), err
}

func (m *Models) archiveVersion(ctx context.Context, model string, version uint32, restore bool) (*registryv1.ModelVersion, error) {
	response, err := m.registry.ArchiveModelVersion(ctx, &registryv1.ArchiveModelVersionRequest{
		Name: versionName(model, version), Restore: restore, RequestId: newRequestID(),
	})
	return response.GetVersion(), err
}
