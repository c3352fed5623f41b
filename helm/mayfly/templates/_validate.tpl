{{- /* What a schema cannot say: values that need one another. Each message names the value. */}}
{{- define "mayfly.validate" -}}
{{- $v := .Values }}
{{- if not $v.demo }}
{{- if not (or $v.database.url $v.database.existingSecret) }}
{{- fail "database.url: a PostgreSQL is needed; give database.url or database.existingSecret, or try out with demo=true" }}
{{- end }}
{{- if and (contains "kaniko" (include "mayfly.backends" .)) (not $v.bucket.name) }}
{{- fail "bucket.name: builds by Kaniko need a bucket; give bucket.name, set buildBackends without kaniko, or try out with demo=true" }}
{{- end }}
{{- end }}
{{- if and $v.database.url $v.database.existingSecret }}
{{- fail "database.existingSecret: give this or database.url, not both" }}
{{- end }}
{{- if and (not $v.registry.address) (or (contains "kaniko" (include "mayfly.backends" .)) (contains "layers" (include "mayfly.backends" .))) }}
{{- fail "registry.address: images are pushed to a registry; give registry.address, or driver=deployment for what needs no images" }}
{{- end }}
{{- if not (or $v.image.repository $v.registry.address) }}
{{- fail "image.repository: where the services' own image is, since there is no registry.address" }}
{{- end }}
{{- if and (eq $v.driver "knative") (contains "bundle" (include "mayfly.backends" .)) }}
{{- fail "buildBackends: bundle makes no image, and knative runs nothing else; use layers,kaniko" }}
{{- end }}
{{- if and $v.gateway.service.nodePort (ne $v.gateway.service.type "NodePort") }}
{{- fail "gateway.service.nodePort: only with gateway.service.type=NodePort" }}
{{- end }}
{{- if eq (include "mayfly.functionsNamespace" .) (include "mayfly.buildsNamespace" .) }}
{{- fail "namespaces.builds: functions and builds need a namespace each" }}
{{- end }}
{{- if or (eq (include "mayfly.functionsNamespace" .) .Release.Namespace) (eq (include "mayfly.buildsNamespace" .) .Release.Namespace) }}
{{- fail "namespaces: functions and builds live apart from the services; use other namespaces than the release's" }}
{{- end }}
{{- /* Only where the image's name tells it, as those of Docker's library and of uv do. */}}
{{- $python := regexFind "python:?3\\.[0-9]+" $v.baseImage | trimPrefix "python" | trimPrefix ":" }}
{{- if and $python $v.basePython (ne $python $v.basePython) }}
{{- fail (printf "basePython: baseImage %s has Python %s, not %s; give both, or leave basePython empty" $v.baseImage $python $v.basePython) }}
{{- end }}
{{- end }}
