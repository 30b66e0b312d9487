package gristmill

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

type answers = map[string]func(context.Context, proto.Message) (proto.Message, error)

func TestAPolicyIsSetReadAndRemoved(t *testing.T) {
	policy := &registryv1.TrafficPolicy{Name: "models/m/trafficPolicy", ShadowVersion: 3}
	models, s := serveScript(t, answers{
		"SetTrafficPolicy":    always(&registryv1.SetTrafficPolicyResponse{TrafficPolicy: policy}),
		"GetTrafficPolicy":    always(&registryv1.GetTrafficPolicyResponse{TrafficPolicy: policy}),
		"DeleteTrafficPolicy": always(nil),
	})
	shares := []*registryv1.Split{VersionShare(1, 90), AliasShare("live", 10)}
	put, err := models.SetTrafficPolicy(t.Context(), "m", shares, WithStickyKey("user"), WithShadow(3), WithPolicyETag("e"))
	if err != nil || put.GetShadowVersion() != 3 {
		t.Fatalf("got %v, %v", put, err)
	}
	sent := last[*registryv1.SetTrafficPolicyRequest](t, s, "SetTrafficPolicy")
	want := &registryv1.TrafficPolicy{
		Name: "models/m/trafficPolicy", Splits: shares, StickyKey: "user", ShadowVersion: 3, Etag: "e",
	}
	if !proto.Equal(sent.GetTrafficPolicy(), want) || sent.GetRequestId() == "" {
		t.Errorf("sent %v", sent)
	}
	if read, err := models.TrafficPolicy(t.Context(), "models/m"); err != nil || !proto.Equal(read, policy) {
		t.Errorf("got %v, %v", read, err)
	}
	if err := models.DeleteTrafficPolicy(t.Context(), "m"); err != nil {
		t.Error(err)
	}
}

func TestPromoteSetsGatesOnlyWhenAsked(t *testing.T) {
	models, s := serveScript(t, answers{"SetAlias": always(nil)})
	for _, c := range []struct {
		opts  []PromoteOption
		mask  []string
		gates int
	}{
		{nil, []string{"version"}, 0},
		{[]PromoteOption{WithGates()}, []string{"version", "gates"}, 0},
		{[]PromoteOption{WithGates(AtLeast("f1", 0.9), AtMost("ms", 40), AtLeastHolder("f1", -0.01), AtMostHolder("ms", 1))}, []string{"version", "gates"}, 4},
	} {
		if _, err := models.Promote(t.Context(), "m", 1, c.opts...); err != nil {
			t.Fatal(err)
		}
		sent := last[*registryv1.SetAliasRequest](t, s, "SetAlias")
		if !slices.Equal(sent.GetUpdateMask().GetPaths(), c.mask) || len(sent.GetAlias().GetGates()) != c.gates {
			t.Errorf("sent %v", sent)
		}
	}
	gates := last[*registryv1.SetAliasRequest](t, s, "SetAlias").GetAlias().GetGates()
	if gates[0].GetValue() != 0.9 || gates[1].GetComparison() != registryv1.Comparison_COMPARISON_AT_MOST || gates[2].GetHolderPlus() != -0.01 || gates[3].GetHolderPlus() != 1 {
		t.Errorf("sent %v", gates)
	}
}

func TestAliasesAreListedAndDeleted(t *testing.T) {
	models, s := serveScript(t, answers{
		"ListAliases": func(_ context.Context, r proto.Message) (proto.Message, error) {
			if r.(*registryv1.ListAliasesRequest).GetPageToken() == "" {
				return &registryv1.ListAliasesResponse{Aliases: []*registryv1.Alias{{Version: 1}}, NextPageToken: "2"}, nil
			}
			return &registryv1.ListAliasesResponse{Aliases: []*registryv1.Alias{{Version: 2}}}, nil
		},
		"DeleteAlias": always(nil),
	})
	aliases, err := models.Aliases(t.Context(), "m")
	if err != nil || len(aliases) != 2 {
		t.Errorf("got %v, %v", aliases, err)
	}
	if err := models.DeleteAlias(t.Context(), "m", "live"); err != nil {
		t.Error(err)
	}
	if name := last[*registryv1.DeleteAliasRequest](t, s, "DeleteAlias").GetName(); name != "models/m/aliases/live" {
		t.Errorf("deleted %s", name)
	}
}

func TestHistoryIsNarrowed(t *testing.T) {
	alias := &registryv1.Resource{Resource: &registryv1.Resource_Alias{Alias: &registryv1.Alias{Version: 2}}}
	models, s := serveScript(t, answers{"GetModelHistory": always(&registryv1.GetModelHistoryResponse{
		Changes: []*registryv1.Change{{Revision: 7}}, At: alias,
	})})
	start, end := time.Unix(1000, 0), time.Unix(2000, 0)
	changes, err := models.History(t.Context(), "m", WithStart(start), WithEnd(end), WithResource("aliases/live"))
	if err != nil || len(changes) != 1 || changes[0].GetRevision() != 7 {
		t.Errorf("got %v, %v", changes, err)
	}
	sent := last[*registryv1.GetModelHistoryRequest](t, s, "GetModelHistory")
	if !sent.GetStartTime().AsTime().Equal(start) || !sent.GetEndTime().AsTime().Equal(end) || sent.GetResource() != "models/m/aliases/live" {
		t.Errorf("sent %v", sent)
	}
	for wanted, resource := range map[string]string{"live": "models/m/aliases/live", "": "models/m/trafficPolicy"} {
		at, err := models.At(t.Context(), "m", start, wanted)
		if err != nil || at.GetAlias().GetVersion() != 2 {
			t.Errorf("got %v, %v", at, err)
		}
		sent := last[*registryv1.GetModelHistoryRequest](t, s, "GetModelHistory")
		if sent.GetResource() != resource || !sent.GetAtTime().AsTime().Equal(start) {
			t.Errorf("sent %v", sent)
		}
	}
}
