package gristmill

import classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"

// Item is one thing to classify.
type Item struct{ message *classifierv1.Item }

// Text is an item of one text.
func Text(text string) Item {
	return Item{&classifierv1.Item{Content: &classifierv1.Item_Text{Text: &classifierv1.Text{Text: text}}}}
}

// Texts is an item for each text.
func Texts(texts ...string) []Item {
	items := make([]Item, len(texts))
	for i, text := range texts {
		items[i] = Text(text)
	}
	return items
}

// TextPair is an item of two texts that belong together, such as premise and
// hypothesis.
func TextPair(first, second string) Item {
	return Item{&classifierv1.Item{Content: &classifierv1.Item_TextPair{
		TextPair: &classifierv1.TextPair{First: first, Second: second},
	}}}
}

// Features is an item of finite numbers, as many as the model has features.
func Features(values ...float32) Item {
	return Item{&classifierv1.Item{Content: &classifierv1.Item_FloatFeatures{
		FloatFeatures: &classifierv1.FloatFeatures{Values: values},
	}}}
}

// Image is an item of one encoded image: PNG, JPEG, WebP, GIF or BMP.
func Image(data []byte) Item {
	return Item{&classifierv1.Item{Content: &classifierv1.Item_Image{Image: &classifierv1.Image{Data: data}}}}
}

// Tensors is an item of named tensors without a batch dimension; [Tensor] makes
// them.
func Tensors(tensors ...*classifierv1.Tensor) Item {
	return Item{&classifierv1.Item{Content: &classifierv1.Item_Tensors{
		Tensors: &classifierv1.NamedTensors{Tensors: tensors},
	}}}
}

func itemMessages(items []Item) []*classifierv1.Item {
	messages := make([]*classifierv1.Item, len(items))
	for i, item := range items {
		messages[i] = item.message
	}
	return messages
}
