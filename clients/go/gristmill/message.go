package gristmill

import generatorv1 "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"

// Role is who speaks in a message of a chat.
type Role string

// The roles.
const (
	RoleSystem    Role = "system"
	RoleUser      Role = "user"
	RoleAssistant Role = "assistant"
	RoleTool      Role = "tool"
)

// A role that is not here becomes the unspecified one, which the server refuses.
var roles = map[Role]generatorv1.Role{
	RoleSystem:    generatorv1.Role_ROLE_SYSTEM,
	RoleUser:      generatorv1.Role_ROLE_USER,
	RoleAssistant: generatorv1.Role_ROLE_ASSISTANT,
	RoleTool:      generatorv1.Role_ROLE_TOOL,
}

// Message is one message of a chat.
type Message struct {
	Role    Role
	Content string
	// Name of the speaker, for templates that use it.
	Name string
	// ToolCalls that the assistant made.
	ToolCalls []*generatorv1.ToolCall
	// ToolCallID is the call that a message of RoleTool answers.
	ToolCallID string
}

// System is a message from the operator.
func System(content string) Message { return Message{Role: RoleSystem, Content: content} }

// User is a message from the person.
func User(content string) Message { return Message{Role: RoleUser, Content: content} }

// Assistant is a message from the model.
func Assistant(content string) Message { return Message{Role: RoleAssistant, Content: content} }

// WithTools lists functions that the model may call.
func WithTools(tools ...*generatorv1.Tool) ToolOption {
	return toolOption{func(c *call) { c.tools = tools }}
}

// WithToolChoice says which tool the model must call. Without it the model decides.
func WithToolChoice(choice *generatorv1.ToolChoice) ChatOption {
	return chatOption{func(c *call) { c.toolChoice = choice }}
}

func textPrompt(text string) *generatorv1.Prompt {
	return &generatorv1.Prompt{Content: &generatorv1.Prompt_Text{Text: &generatorv1.TextPrompt{Text: text}}}
}

func chatPrompt(messages []Message, call *call) *generatorv1.Prompt {
	chat := &generatorv1.ChatPrompt{Messages: chatMessages(messages), Tools: call.tools, ToolChoice: call.toolChoice}
	return &generatorv1.Prompt{Content: &generatorv1.Prompt_Chat{Chat: chat}}
}

func chatMessages(messages []Message) []*generatorv1.ChatMessage {
	var found []*generatorv1.ChatMessage
	for _, m := range messages {
		found = append(found, &generatorv1.ChatMessage{
			Role: roles[m.Role], Content: m.Content, Name: m.Name, ToolCalls: m.ToolCalls, ToolCallId: m.ToolCallID,
		})
	}
	return found
}
