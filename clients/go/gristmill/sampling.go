package gristmill

import (
	"google.golang.org/protobuf/proto"

	generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
)

// WithMaxTokens bounds the tokens of an answer. Without it: what the context
// leaves, at most the server's own limit.
func WithMaxTokens(tokens uint32) SamplingOption {
	return WithParams(func(p *generatorv1.SamplingParams) { p.MaxTokens = proto.Uint32(tokens) })
}

// WithTemperature sets how random the answer is, 0 to 2; 0 takes the likeliest
// token each time. Without it: 1.
func WithTemperature(temperature float32) SamplingOption {
	return WithParams(func(p *generatorv1.SamplingParams) { p.Temperature = proto.Float32(temperature) })
}

// WithTopP draws from the fewest tokens whose probabilities add up to this.
// Without it: 1.
func WithTopP(topP float32) SamplingOption {
	return WithParams(func(p *generatorv1.SamplingParams) { p.TopP = proto.Float32(topP) })
}

// WithSeed draws equal tokens for equal requests. Without it: a fresh seed.
func WithSeed(seed uint64) SamplingOption {
	return WithParams(func(p *generatorv1.SamplingParams) { p.Seed = proto.Uint64(seed) })
}

// WithStop ends the answer before any of these texts.
func WithStop(stop ...string) SamplingOption {
	return WithParams(func(p *generatorv1.SamplingParams) { p.Stop = stop })
}

// WithJSONSchema makes the answer a JSON document that satisfies the schema.
func WithJSONSchema(schema string) SamplingOption {
	return WithParams(func(p *generatorv1.SamplingParams) {
		p.Constraint = &generatorv1.OutputConstraint{
			Constraint: &generatorv1.OutputConstraint_JsonSchema{JsonSchema: schema},
		}
	})
}

// WithParams sets any sampling parameter of the contract.
func WithParams(set func(*generatorv1.SamplingParams)) SamplingOption {
	return samplingOption{func(c *call) {
		if c.params == nil {
			c.params = &generatorv1.SamplingParams{}
		}
		set(c.params)
	}}
}
