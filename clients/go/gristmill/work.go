package gristmill

import (
	"context"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

// EvaluateOption says more of an evaluation.
type EvaluateOption func(*registryv1.EvaluateModelVersionRequest)

// WithMetricPrefix puts a prefix before the name of each metric.
func WithMetricPrefix(prefix string) EvaluateOption {
	return func(r *registryv1.EvaluateModelVersionRequest) { r.MetricPrefix = prefix }
}

// Evaluate runs a labelled set, a version of a model of task dataset, through a
// version and stores the metrics with it. Version 0 is the newest that is READY,
// of either. The operation ends with the version.
func (m *Models) Evaluate(ctx context.Context, model string, version uint32, dataset string, datasetVersion uint32, opts ...EvaluateOption) (*Operation, error) {
	name, err := m.pick(ctx, model, version)
	if err != nil {
		return nil, err
	}
	data, err := m.pick(ctx, dataset, datasetVersion)
	if err != nil {
		return nil, err
	}
	request := &registryv1.EvaluateModelVersionRequest{Name: name, Dataset: data, RequestId: newRequestID()}
	for _, opt := range opts {
		opt(request)
	}
	response, err := m.registry.EvaluateModelVersion(ctx, request)
	return m.begun(response.GetOperation(), err)
}

// ConvertOption says more of a conversion.
type ConvertOption func(*registryv1.ConvertModelVersionRequest)

// WithMaxDifference sets the largest difference of any probability from that of
// the source on real inputs. Without it: 1e-3 for ONNX, 0.1 for int8.
func WithMaxDifference(difference float64) ConvertOption {
	return func(r *registryv1.ConvertModelVersionRequest) { r.MaxDifference = proto.Float64(difference) }
}

// Convert makes a new version of a version; 0 is the newest that is READY. The
// operation ends with the new version.
func (m *Models) Convert(ctx context.Context, model string, version uint32, to registryv1.Conversion, opts ...ConvertOption) (*Operation, error) {
	name, err := m.pick(ctx, model, version)
	if err != nil {
		return nil, err
	}
	request := &registryv1.ConvertModelVersionRequest{Name: name, Conversion: to, RequestId: newRequestID()}
	for _, opt := range opts {
		opt(request)
	}
	response, err := m.registry.ConvertModelVersion(ctx, request)
	return m.begun(response.GetOperation(), err)
}

// ProfileOption says what to measure.
type ProfileOption func(*registryv1.ProfileModelVersionRequest)

// WithBatchSizes measures these batch sizes.
func WithBatchSizes(sizes ...uint32) ProfileOption {
	return func(r *registryv1.ProfileModelVersionRequest) { r.BatchSizes = sizes }
}

// WithLengths measures these lengths in tokens.
func WithLengths(lengths ...uint32) ProfileOption {
	return func(r *registryv1.ProfileModelVersionRequest) { r.Lengths = lengths }
}

// Profile measures the latency of a version on the host of the registry's
// worker; 0 is the newest that is READY. The operation ends with the curve.
func (m *Models) Profile(ctx context.Context, model string, version uint32, opts ...ProfileOption) (*Operation, error) {
	name, err := m.pick(ctx, model, version)
	if err != nil {
		return nil, err
	}
	request := &registryv1.ProfileModelVersionRequest{Name: name, RequestId: newRequestID()}
	for _, opt := range opts {
		opt(request)
	}
	response, err := m.registry.ProfileModelVersion(ctx, request)
	return m.begun(response.GetOperation(), err)
}

// Profiles reads the measured latency curves of a version, newest first; 0 is
// the newest version that is READY.
func (m *Models) Profiles(ctx context.Context, model string, version uint32) ([]*registryv1.ModelVersionProfile, error) {
	name, err := m.pick(ctx, model, version)
	if err != nil {
		return nil, err
	}
	response, err := m.registry.GetModelVersionProfile(ctx, &registryv1.GetModelVersionProfileRequest{Name: name})
	return response.GetProfiles(), err
}

// Import fetches a model from a source of the registry into a new version of a
// model, which must exist. An empty revision is what is there now; a hub needs a
// full commit. The operation ends with the version.
func (m *Models) Import(ctx context.Context, model, source, path, revision string) (*Operation, error) {
	response, err := m.registry.ImportModel(ctx, &registryv1.ImportModelRequest{
		Parent: modelName(model), Source: source, Path: path, Revision: revision, RequestId: newRequestID(),
	})
	return m.begun(response.GetOperation(), err)
}

// Sources reads where the registry may import from.
func (m *Models) Sources(ctx context.Context) ([]*registryv1.Source, error) {
	request := &registryv1.ListSourcesRequest{PageSize: pageSize}
	return pages(func(token string) ([]*registryv1.Source, string, error) {
		request.PageToken = token
		page, err := m.registry.ListSources(ctx, request)
		return page.GetSources(), page.GetNextPageToken(), err
	})
}

func (m *Models) begun(operation *longrunningpb.Operation, err error) (*Operation, error) {
	if err != nil {
		return nil, err
	}
	return newOperation(m.operations, operation), nil
}

// pick names a version; of 0 the newest that is READY.
func (m *Models) pick(ctx context.Context, model string, version uint32) (string, error) {
	if version != 0 {
		return versionName(model, version), nil
	}
	page, err := m.registry.ListModelVersions(ctx, &registryv1.ListModelVersionsRequest{
		Parent: modelName(model), PageSize: 1, Filter: "state = READY",
	})
	if err != nil {
		return "", err
	}
	if len(page.GetVersions()) == 0 {
		return "", newError(status.Newf(codes.FailedPrecondition, "the model %s has no READY version", modelID(model)), "")
	}
	return page.GetVersions()[0].GetName(), nil
}
