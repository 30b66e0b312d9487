package gristmill

import (
	"encoding/binary"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
)

// Element is what a [Tensor] is made of: booleans, integers and floats of the
// contract's sizes, and strings of bytes.
type Element interface {
	bool | uint8 | uint16 | uint32 | uint64 | int8 | int16 | int32 | int64 | float32 | float64 | string | []byte
}

// Tensor makes a tensor of one item for [Tensors]: name is that of the model's
// input, "" for its only one; values are row by row, shape has no batch
// dimension. Without a shape it is that of the slice. The server refuses an item
// whose shape does not fit its values. FP16 and BF16, which Go has not, and
// scalars, whose shape is empty, are written as a classifierv1.Tensor.
func Tensor[T Element](name string, values []T, shape ...uint32) *classifierv1.Tensor {
	if len(shape) == 0 {
		shape = []uint32{uint32(len(values))}
	}
	tensor := &classifierv1.Tensor{Name: name, Shape: shape}
	tensor.Datatype, tensor.Data = elements(values)
	return tensor
}

func elements[T Element](values []T) (classifierv1.Datatype, []byte) {
	switch values := any(values).(type) {
	case []string:
		return classifierv1.Datatype_DATATYPE_BYTES, lengthPrefixed(values)
	case [][]byte:
		return classifierv1.Datatype_DATATYPE_BYTES, lengthPrefixed(values)
	}
	data, err := binary.Append(nil, binary.LittleEndian, values)
	if err != nil {
		panic(err) // every other Element has a fixed size
	}
	return datatype[T](), data
}

func lengthPrefixed[T string | []byte](values []T) []byte {
	var data []byte
	for _, value := range values {
		data = binary.LittleEndian.AppendUint32(data, uint32(len(value)))
		data = append(data, value...)
	}
	return data
}

func datatype[T Element]() classifierv1.Datatype {
	var zero T
	return map[any]classifierv1.Datatype{
		false:      classifierv1.Datatype_DATATYPE_BOOL,
		uint8(0):   classifierv1.Datatype_DATATYPE_UINT8,
		uint16(0):  classifierv1.Datatype_DATATYPE_UINT16,
		uint32(0):  classifierv1.Datatype_DATATYPE_UINT32,
		uint64(0):  classifierv1.Datatype_DATATYPE_UINT64,
		int8(0):    classifierv1.Datatype_DATATYPE_INT8,
		int16(0):   classifierv1.Datatype_DATATYPE_INT16,
		int32(0):   classifierv1.Datatype_DATATYPE_INT32,
		int64(0):   classifierv1.Datatype_DATATYPE_INT64,
		float32(0): classifierv1.Datatype_DATATYPE_FP32,
		float64(0): classifierv1.Datatype_DATATYPE_FP64,
	}[zero]
}
