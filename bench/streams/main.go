// Command streams is the load generator of the generator's benchmark: closed-loop callers, each
// with one stream under way at a time, over our gRPC or over an OpenAI-compatible HTTP server.
// It prints one JSON object.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/gristmill/gristmill/generated/go/gristmill/generator/v1"
)

var (
	target  = flag.String("target", "127.0.0.1:50053", "address of the server")
	kind    = flag.String("kind", "grpc", "grpc or http")
	model   = flag.String("model", "", "model to call over http")
	callers = flag.Int("callers", 8, "streams at once")
	prompts = flag.String("prompts", "", "file with a JSON list of lists of token ids")
	tokens  = flag.Uint("tokens", 64, "tokens of each answer")
)

// result is what one run prints.
type result struct {
	Tokens   int64   `json:"tokens"`
	Messages int64   `json:"messages"`
	Failed   int64   `json:"failed"`
	Seconds  float64 `json:"seconds"`
	P50      float64 `json:"first_p50_ms"`
	P99      float64 `json:"first_p99_ms"`
}

// run is one load and how it went.
type run struct {
	prompts  [][]uint32
	next     atomic.Int64
	failed   atomic.Int64
	tokens   atomic.Int64
	messages atomic.Int64
	mutex    sync.Mutex
	firsts   []time.Duration
}

func main() {
	flag.Parse()
	text, err := os.ReadFile(*prompts)
	if err != nil {
		log.Fatal(err)
	}
	r := &run{}
	if err := json.Unmarshal(text, &r.prompts); err != nil {
		log.Fatal(err)
	}
	connection, err := grpc.NewClient(*target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	client := pb.NewGeneratorServiceClient(connection)
	call := func(ids []uint32) error { return r.overGRPC(client, ids) }
	if *kind == "http" {
		call = r.overHTTP
	}
	var group sync.WaitGroup
	started := time.Now()
	for range *callers {
		group.Go(func() {
			for at := r.next.Add(1) - 1; at < int64(len(r.prompts)); at = r.next.Add(1) - 1 {
				if err := call(r.prompts[at]); err != nil {
					log.Print(err)
					r.failed.Add(1)
				}
			}
		})
	}
	group.Wait()
	seconds := time.Since(started).Seconds()
	slices.Sort(r.firsts)
	report := result{r.tokens.Load(), r.messages.Load(), r.failed.Load(), seconds, r.quantile(0.5), r.quantile(0.99)}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		log.Fatal(err)
	}
}

func (r *run) overGRPC(client pb.GeneratorServiceClient, ids []uint32) error {
	most, cold := uint32(*tokens), float32(0)
	request := &pb.GenerateStreamRequest{
		Prompt: &pb.Prompt{Content: &pb.Prompt_Tokens{Tokens: &pb.TokenPrompt{Ids: ids}}},
		Params: &pb.SamplingParams{MaxTokens: &most, Temperature: &cold, IgnoreEos: true},
	}
	sent := time.Now()
	stream, err := client.GenerateStream(context.Background(), request)
	if err != nil {
		return err
	}
	first := true
	for {
		event, err := stream.Recv()
		if err != nil {
			return err
		}
		if finished := event.GetFinished(); finished != nil {
			r.tokens.Add(int64(finished.GetUsage().GetCompletionTokens()))
			return stream.CloseSend()
		}
		if event.GetDelta() == nil {
			continue
		}
		r.messages.Add(1)
		if first {
			first = false
			r.heard(time.Since(sent))
		}
	}
}

func (r *run) overHTTP(ids []uint32) error {
	body, err := json.Marshal(map[string]any{
		"model": *model, "prompt": ids, "max_tokens": *tokens, "temperature": 0, "ignore_eos": true,
		"stream": true, "stream_options": map[string]any{"include_usage": true},
	})
	if err != nil {
		return err
	}
	sent := time.Now()
	response, err := http.Post("http://"+*target+"/v1/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	first := true
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, is := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !is || bytes.Equal(data, []byte("[DONE]")) {
			continue
		}
		var chunk struct {
			Choices []struct{ Text string }
			Usage   struct {
				CompletionTokens int64 `json:"completion_tokens"`
			}
		}
		if err := json.Unmarshal(data, &chunk); err != nil {
			return err
		}
		r.tokens.Add(chunk.Usage.CompletionTokens)
		if len(chunk.Choices) == 0 {
			continue
		}
		r.messages.Add(1)
		if first {
			first = false
			r.heard(time.Since(sent))
		}
	}
	return lines.Err()
}

func (r *run) heard(first time.Duration) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.firsts = append(r.firsts, first)
}

func (r *run) quantile(share float64) float64 {
	if len(r.firsts) == 0 {
		return 0
	}
	at := min(len(r.firsts)-1, int(float64(len(r.firsts))*share))
	return float64(r.firsts[at].Microseconds()) / 1000
}
