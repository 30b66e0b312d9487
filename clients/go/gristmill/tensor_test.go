package gristmill

import (
	"bytes"
	"context"
	"slices"
	"testing"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
)

func TestTensorsAreRowMajorAndLittleEndian(t *testing.T) {
	for _, c := range []struct {
		tensor   *classifierv1.Tensor
		datatype classifierv1.Datatype
		data     []byte
	}{
		{Tensor("x", []bool{true, false}), classifierv1.Datatype_DATATYPE_BOOL, []byte{1, 0}},
		{Tensor("x", []uint8{1, 255}), classifierv1.Datatype_DATATYPE_UINT8, []byte{1, 255}},
		{Tensor("x", []uint16{1, 258}), classifierv1.Datatype_DATATYPE_UINT16, []byte{1, 0, 2, 1}},
		{Tensor("x", []uint32{1, 2}), classifierv1.Datatype_DATATYPE_UINT32, []byte{1, 0, 0, 0, 2, 0, 0, 0}},
		{Tensor("x", []uint64{1, 2}), classifierv1.Datatype_DATATYPE_UINT64, []byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}},
		{Tensor("x", []int8{1, -1}), classifierv1.Datatype_DATATYPE_INT8, []byte{1, 255}},
		{Tensor("x", []int16{1, -2}), classifierv1.Datatype_DATATYPE_INT16, []byte{1, 0, 254, 255}},
		{Tensor("x", []int32{1, -1}), classifierv1.Datatype_DATATYPE_INT32, []byte{1, 0, 0, 0, 255, 255, 255, 255}},
		{Tensor("x", []int64{1, 2}), classifierv1.Datatype_DATATYPE_INT64, []byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}},
		{Tensor("x", []float32{1, -2}), classifierv1.Datatype_DATATYPE_FP32, []byte{0, 0, 128, 63, 0, 0, 0, 192}},
		{Tensor("x", []float64{1, 2}), classifierv1.Datatype_DATATYPE_FP64, []byte{0, 0, 0, 0, 0, 0, 240, 63, 0, 0, 0, 0, 0, 0, 0, 64}},
		{Tensor("x", []string{"ä", ""}), classifierv1.Datatype_DATATYPE_BYTES, []byte{2, 0, 0, 0, 0xc3, 0xa4, 0, 0, 0, 0}},
		{Tensor("x", [][]byte{{7}, nil}), classifierv1.Datatype_DATATYPE_BYTES, []byte{1, 0, 0, 0, 7, 0, 0, 0, 0}},
	} {
		if c.tensor.GetDatatype() != c.datatype || !bytes.Equal(c.tensor.GetData(), c.data) || c.tensor.GetName() != "x" || !slices.Equal(c.tensor.GetShape(), []uint32{2}) {
			t.Errorf("%s: got %v", c.datatype, c.tensor)
		}
	}
}

func TestTensorsReachTheServer(t *testing.T) {
	var got *classifierv1.NamedTensors
	client := serve(t, &classifierFake{classify: func(_ context.Context, r *classifierv1.ClassifyRequest) (*classifierv1.ClassifyResponse, error) {
		got = r.GetItems()[0].GetTensors()
		return &classifierv1.ClassifyResponse{Results: []*classifierv1.ItemResult{answer("a", 1)}}, nil
	}}, nil, nil)
	item := Tensors(Tensor("input_ids", []int64{1, 2, 3, 4, 5, 6}, 2, 3), Tensor("", []float32(nil), 0, 4))
	if _, err := client.Classify(t.Context(), []Item{item}); err != nil {
		t.Fatal(err)
	}
	ids, empty := got.GetTensors()[0], got.GetTensors()[1]
	if ids.GetName() != "input_ids" || !slices.Equal(ids.GetShape(), []uint32{2, 3}) || len(ids.GetData()) != 48 {
		t.Errorf("got %v", ids)
	}
	if empty.GetName() != "" || !slices.Equal(empty.GetShape(), []uint32{0, 4}) || len(empty.GetData()) != 0 {
		t.Errorf("got %v", empty)
	}
}
