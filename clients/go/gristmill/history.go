package gristmill

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

// HistoryOption narrows a history.
type HistoryOption func(*registryv1.GetModelHistoryRequest)

// WithStart leaves out changes before a moment.
func WithStart(moment time.Time) HistoryOption {
	return func(r *registryv1.GetModelHistoryRequest) { r.StartTime = timestamppb.New(moment) }
}

// WithEnd leaves out changes at or after a moment.
func WithEnd(moment time.Time) HistoryOption {
	return func(r *registryv1.GetModelHistoryRequest) { r.EndTime = timestamppb.New(moment) }
}

// WithResource leaves out the changes of other resources than this, such as
// "aliases/live", "trafficPolicy" or "versions/3".
func WithResource(resource string) HistoryOption {
	return func(r *registryv1.GetModelHistoryRequest) { r.Resource = r.GetName() + "/" + resource }
}

// History reads what happened to a model and all that belongs to it, newest
// first. A deleted model still has its history.
func (m *Models) History(ctx context.Context, model string, opts ...HistoryOption) ([]*registryv1.Change, error) {
	request := &registryv1.GetModelHistoryRequest{Name: modelName(model), PageSize: pageSize}
	for _, opt := range opts {
		opt(request)
	}
	return pages(func(token string) ([]*registryv1.Change, string, error) {
		request.PageToken = token
		page, err := m.registry.GetModelHistory(ctx, request)
		return page.GetChanges(), page.GetNextPageToken(), err
	})
}

// At says what an alias, or with an empty one the traffic policy, was at a
// moment. Nil: there was none.
func (m *Models) At(ctx context.Context, model string, moment time.Time, alias string) (*registryv1.Resource, error) {
	resource := policyName(model)
	if alias != "" {
		resource = aliasName(model, alias)
	}
	response, err := m.registry.GetModelHistory(ctx, &registryv1.GetModelHistoryRequest{
		Name: modelName(model), PageSize: 1, Resource: resource, AtTime: timestamppb.New(moment),
	})
	return response.GetAt(), err
}
