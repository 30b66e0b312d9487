package gristmill

import (
	"strings"
	"time"

	classifierv1 "github.com/gristmill/gristmill/generated/go/gristmill/classifier/v1"
	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
	registryv1 "github.com/gristmill/gristmill/generated/go/gristmill/registry/v1"
)

// Each kind of call takes the options that it can honour, and the compiler
// refuses the others, so that none is silently ignored.
type (
	// BidiOption goes with ClassifyBidi and with what is sent on it.
	BidiOption interface {
		apply(*call)
		bidi()
	}
	// ClassifyOption goes with Classify and ClassifyStream, and with ClassifyBidi.
	ClassifyOption interface {
		BidiOption
		classify()
	}
	// ChatOption goes with Chat and StreamChat.
	ChatOption interface {
		apply(*call)
		chat()
	}
	// GenerateOption goes with Generate and Stream, and with Chat and StreamChat.
	GenerateOption interface {
		ChatOption
		generate()
	}
	// SayOption goes with Conversation.Say and SayMessages.
	SayOption interface {
		apply(*call)
		say()
	}
	// ConverseOption goes with Converse.
	ConverseOption interface {
		apply(*call)
		converse()
	}
	// TurnOption goes with what is said, and with Converse for all turns.
	TurnOption interface {
		SayOption
		ConverseOption
	}
	// SamplingOption goes with every call that generates.
	SamplingOption interface {
		GenerateOption
		TurnOption
	}
	// ToolOption goes with Chat and StreamChat, and with Converse.
	ToolOption interface {
		ChatOption
		ConverseOption
	}
	// PriorityOption goes with every call of a model and with what is said.
	PriorityOption interface {
		CallOption
		TurnOption
	}
	// ResolveOption goes with Models.Resolve.
	ResolveOption interface {
		apply(*call)
		resolve()
	}
	// PromoteOption goes with Models.Promote.
	PromoteOption interface {
		apply(*call)
		promote()
	}
	// CallOption goes with every call of a model but Converse.
	CallOption interface {
		ClassifyOption
		GenerateOption
	}
	// VersionOption goes with every call of a model and with Models.Resolve.
	VersionOption interface {
		CallOption
		ConverseOption
		ResolveOption
	}
	// AliasOption goes with all of these.
	AliasOption interface {
		VersionOption
		PromoteOption
	}
)

// WithModel names the model. Without it the only model served answers.
func WithModel(model string) CallOption {
	return callOption{option: func(c *call) { c.ref().Model = modelID(model) }}
}

// WithVersion asks for a version of the model. Without it and WithAlias the
// traffic policy chooses, else the alias "live".
func WithVersion(version uint32) VersionOption {
	return versionOption{callOption{option: func(c *call) {
		c.ref().Selector = &registryv1.ModelRef_Version{Version: version}
	}}}
}

// WithAlias asks for the version that an alias points to; for Models.Promote it
// names the alias to move.
func WithAlias(alias string) AliasOption {
	return aliasOption{versionOption{callOption{option: func(c *call) {
		c.ref().Selector = &registryv1.ModelRef_Alias{Alias: alias}
	}}}}
}

// WithPriority sets how urgent a call is: 1 (most) to 9.
func WithPriority(priority uint32) PriorityOption {
	return priorityOption{callOption{option: func(c *call) { c.priority = priority }}}
}

// call is what the options of one call say. What no option touched stays nil,
// which leaves it to the server's defaults.
type call struct {
	model       *registryv1.ModelRef
	priority    uint32
	options     *classifierv1.ClassifyOptions
	itemTimeout time.Duration
	turnTimeout time.Duration
	turnID      string
	history     []Message
	params      *generatorv1.SamplingParams
	tools       []*generatorv1.Tool
	toolChoice  *generatorv1.ToolChoice
	etag        string
	gates       []*registryv1.Gate
	setGates    bool
}

func newCall[O interface{ apply(*call) }](opts []O) *call {
	c := &call{}
	for _, opt := range opts {
		opt.apply(c)
	}
	return c
}

func (c *call) ref() *registryv1.ModelRef {
	if c.model == nil {
		c.model = &registryv1.ModelRef{}
	}
	return c.model
}

type option func(*call)

func (o option) apply(c *call) { o(c) }

type callOption struct{ option }

func (callOption) bidi()     {}
func (callOption) classify() {}
func (callOption) chat()     {}
func (callOption) generate() {}

type versionOption struct{ callOption }

func (versionOption) converse() {}
func (versionOption) resolve()  {}

type aliasOption struct{ versionOption }

func (aliasOption) promote() {}

type priorityOption struct{ callOption }

func (priorityOption) converse() {}
func (priorityOption) say()      {}

type bidiOption struct{ option }

func (bidiOption) bidi() {}

type classifyOption struct{ option }

func (classifyOption) bidi()     {}
func (classifyOption) classify() {}

type chatOption struct{ option }

func (chatOption) chat() {}

type toolOption struct{ option }

func (toolOption) chat()     {}
func (toolOption) converse() {}

type samplingOption struct{ option }

func (samplingOption) chat()     {}
func (samplingOption) converse() {}
func (samplingOption) generate() {}
func (samplingOption) say()      {}

type converseOption struct{ option }

func (converseOption) converse() {}

type sayOption struct{ option }

func (sayOption) say() {}

type turnOption struct{ option }

func (turnOption) converse() {}
func (turnOption) say()      {}

type promoteOption struct{ option }

func (promoteOption) promote() {}

// modelID and modelName let callers write "sentiment" and "models/sentiment".
func modelID(model string) string   { return strings.TrimPrefix(model, "models/") }
func modelName(model string) string { return "models/" + modelID(model) }
