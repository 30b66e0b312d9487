package gristmill

import (
	"context"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

// AtLeast is the gate metric >= limit.
func AtLeast(metric string, limit float64) *registryv1.Gate {
	return &registryv1.Gate{
		Metric: metric, Comparison: registryv1.Comparison_COMPARISON_AT_LEAST, Limit: &registryv1.Gate_Value{Value: limit},
	}
}

// AtMost is the gate metric <= limit.
func AtMost(metric string, limit float64) *registryv1.Gate {
	return &registryv1.Gate{
		Metric: metric, Comparison: registryv1.Comparison_COMPARISON_AT_MOST, Limit: &registryv1.Gate_Value{Value: limit},
	}
}

// AtLeastHolder is the gate metric >= the same metric of the version that the
// alias points to now, plus a number.
func AtLeastHolder(metric string, plus float64) *registryv1.Gate {
	return &registryv1.Gate{
		Metric: metric, Comparison: registryv1.Comparison_COMPARISON_AT_LEAST, Limit: &registryv1.Gate_HolderPlus{HolderPlus: plus},
	}
}

// AtMostHolder is the gate metric <= the same metric of the version that the
// alias points to now, plus a number.
func AtMostHolder(metric string, plus float64) *registryv1.Gate {
	return &registryv1.Gate{
		Metric: metric, Comparison: registryv1.Comparison_COMPARISON_AT_MOST, Limit: &registryv1.Gate_HolderPlus{HolderPlus: plus},
	}
}

// Aliases reads all aliases of a model, by name.
func (m *Models) Aliases(ctx context.Context, model string) ([]*registryv1.Alias, error) {
	request := &registryv1.ListAliasesRequest{Parent: modelName(model), PageSize: pageSize}
	return pages(func(token string) ([]*registryv1.Alias, string, error) {
		request.PageToken = token
		page, err := m.registry.ListAliases(ctx, request)
		return page.GetAliases(), page.GetNextPageToken(), err
	})
}

// DeleteAlias deletes an alias.
func (m *Models) DeleteAlias(ctx context.Context, model, alias string) error {
	_, err := m.registry.DeleteAlias(ctx, &registryv1.DeleteAliasRequest{
		Name: aliasName(model, alias), RequestId: newRequestID(),
	})
	return err
}

// VersionShare gives a version a relative weight in a traffic policy.
func VersionShare(version, weight uint32) *registryv1.Split {
	return &registryv1.Split{Target: &registryv1.Split_Version{Version: version}, Weight: weight}
}

// AliasShare gives an alias, wherever it points, a relative weight in a traffic
// policy.
func AliasShare(alias string, weight uint32) *registryv1.Split {
	return &registryv1.Split{Target: &registryv1.Split_Alias{Alias: alias}, Weight: weight}
}

// PolicyOption says more of a traffic policy.
type PolicyOption func(*registryv1.TrafficPolicy)

// WithStickyKey keeps calls with the same value of this metadata key together.
func WithStickyKey(key string) PolicyOption {
	return func(p *registryv1.TrafficPolicy) { p.StickyKey = key }
}

// WithShadow sends a copy of every call to a version, whose answers only feed a
// metric.
func WithShadow(version uint32) PolicyOption {
	return func(p *registryv1.TrafficPolicy) { p.ShadowVersion = version }
}

// WithPolicyETag sets the policy only if it has not changed since this etag was
// read.
func WithPolicyETag(etag string) PolicyOption {
	return func(p *registryv1.TrafficPolicy) { p.Etag = etag }
}

// SetTrafficPolicy spreads the calls that name neither version nor alias over
// shares, see [VersionShare] and [AliasShare], and replaces the policy there was.
func (m *Models) SetTrafficPolicy(ctx context.Context, model string, shares []*registryv1.Split, opts ...PolicyOption) (*registryv1.TrafficPolicy, error) {
	policy := &registryv1.TrafficPolicy{Name: policyName(model), Splits: shares}
	for _, opt := range opts {
		opt(policy)
	}
	response, err := m.registry.SetTrafficPolicy(ctx, &registryv1.SetTrafficPolicyRequest{
		TrafficPolicy: policy, RequestId: newRequestID(),
	})
	return response.GetTrafficPolicy(), err
}

// TrafficPolicy reads the traffic policy of a model; see [IsNotFound].
func (m *Models) TrafficPolicy(ctx context.Context, model string) (*registryv1.TrafficPolicy, error) {
	response, err := m.registry.GetTrafficPolicy(ctx, &registryv1.GetTrafficPolicyRequest{Name: policyName(model)})
	return response.GetTrafficPolicy(), err
}

// DeleteTrafficPolicy deletes the traffic policy: the alias "live" decides again.
func (m *Models) DeleteTrafficPolicy(ctx context.Context, model string) error {
	_, err := m.registry.DeleteTrafficPolicy(ctx, &registryv1.DeleteTrafficPolicyRequest{
		Name: policyName(model), RequestId: newRequestID(),
	})
	return err
}
