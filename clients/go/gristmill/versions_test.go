package gristmill

import (
	"slices"
	"testing"

	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

func TestVersionsAreReadOneByOneAndTogether(t *testing.T) {
	version := &registryv1.ModelVersion{Version: 3}
	models, s := serveScript(t, answers{
		"ListModelVersions":     always(&registryv1.ListModelVersionsResponse{Versions: []*registryv1.ModelVersion{version}}),
		"GetModelVersion":       always(&registryv1.GetModelVersionResponse{Version: version}),
		"BatchGetModelVersions": always(&registryv1.BatchGetModelVersionsResponse{Versions: []*registryv1.ModelVersion{version}}),
		"BatchGetModels":        always(&registryv1.BatchGetModelsResponse{Models: []*registryv1.Model{{Name: "models/m"}}}),
	})
	versions, err := models.Versions(t.Context(), "m", WithFilter("state = READY"), WithOrderBy("version"))
	if err != nil || len(versions) != 1 {
		t.Errorf("got %v, %v", versions, err)
	}
	listed := last[*registryv1.ListModelVersionsRequest](t, s, "ListModelVersions")
	if listed.GetParent() != "models/m" || listed.GetFilter() != "state = READY" || listed.GetOrderBy() != "version" {
		t.Errorf("sent %v", listed)
	}
	if one, err := models.Version(t.Context(), "m", 3); err != nil || one.GetVersion() != 3 {
		t.Errorf("got %v, %v", one, err)
	}
	if _, err := models.BatchGetVersions(t.Context(), "m", 3, 1); err != nil {
		t.Error(err)
	}
	names := last[*registryv1.BatchGetModelVersionsRequest](t, s, "BatchGetModelVersions").GetNames()
	if !slices.Equal(names, []string{"models/m/versions/3", "models/m/versions/1"}) {
		t.Errorf("sent %v", names)
	}
	if found, err := models.BatchGet(t.Context(), "m"); err != nil || found[0].GetName() != "models/m" {
		t.Errorf("got %v, %v", found, err)
	}
}

func TestAnUpdateTouchesOnlyWhatIsNamed(t *testing.T) {
	models, s := serveScript(t, answers{"UpdateModel": always(nil), "UpdateModelVersion": always(nil)})
	if _, err := models.Update(t.Context(), "m"); !IsInvalid(err) {
		t.Errorf("an update of nothing gave %v", err)
	}
	if _, err := models.Update(t.Context(), "m", WithDescription("d"), WithLabels(nil)); err != nil {
		t.Fatal(err)
	}
	mask := last[*registryv1.UpdateModelRequest](t, s, "UpdateModel").GetUpdateMask().GetPaths()
	if !slices.Equal(mask, []string{"description", "labels"}) {
		t.Errorf("sent %v", mask)
	}
	if _, err := models.UpdateVersion(t.Context(), "m", 2); !IsInvalid(err) {
		t.Errorf("an update of nothing gave %v", err)
	}
	if _, err := models.UpdateVersion(t.Context(), "m", 2, WithMetrics(map[string]float64{"f1": 0.9})); err != nil {
		t.Fatal(err)
	}
	sent := last[*registryv1.UpdateModelVersionRequest](t, s, "UpdateModelVersion")
	if sent.GetVersion().GetName() != "models/m/versions/2" || sent.GetVersion().GetMetrics()["f1"] != 0.9 || !slices.Equal(sent.GetUpdateMask().GetPaths(), []string{"metrics"}) {
		t.Errorf("sent %v", sent)
	}
}

func TestWhatIsPutAwayComesBack(t *testing.T) {
	models, s := serveScript(t, answers{"ArchiveModel": always(nil), "ArchiveModelVersion": always(nil)})
	models.Archive(t.Context(), "m")
	if sent := last[*registryv1.ArchiveModelRequest](t, s, "ArchiveModel"); sent.GetName() != "models/m" || sent.GetRestore() {
		t.Errorf("sent %v", sent)
	}
	models.Restore(t.Context(), "m")
	if sent := last[*registryv1.ArchiveModelRequest](t, s, "ArchiveModel"); !sent.GetRestore() {
		t.Errorf("sent %v", sent)
	}
	models.ArchiveVersion(t.Context(), "m", 2)
	if sent := last[*registryv1.ArchiveModelVersionRequest](t, s, "ArchiveModelVersion"); sent.GetName() != "models/m/versions/2" || sent.GetRestore() {
		t.Errorf("sent %v", sent)
	}
	models.RestoreVersion(t.Context(), "m", 2)
	if sent := last[*registryv1.ArchiveModelVersionRequest](t, s, "ArchiveModelVersion"); !sent.GetRestore() {
		t.Errorf("sent %v", sent)
	}
}
